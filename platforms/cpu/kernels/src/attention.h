// Attention over a paged KV cache.
//
// Shape legend: T tokens of the step, N requests, H query heads, K key/value heads, G = H/K query heads
// that share one, D head dim. Keys are counted in *pages* of PANEL tokens, the blocks of the cache
// are one or more pages each.
//
// The cache of a layer is [pages][K][unit]; a unit is one page of one head:
//
//     keys      one panel: D is summed over, its columns are the page's tokens
//     values    ceil(D/32) panels: the page's tokens are summed over
//     int8      then the tokens' scales: PANEL floats for the keys, PANEL for the values
//
// so that both products of attention are those of rows with panels, and nothing is repacked. What a
// page holds behind the tokens that were written may be anything, NaN as well: it is never
// multiplied with anything.
#pragma once
#include <atomic>
#include <cstdlib>
#include <memory>
#include <vector>

#include "team.h"

namespace ek {

// What a model's attention is; the same for every step.
struct AttentionShape {
    int64_t heads, kv_heads, head_dim;
    int64_t block_pages;
    int64_t window;  // a token sees itself and the window-1 tokens before it; 0: all
    float scale;
    float soft_cap;  // 0: none
    Dtype dtype;     // of q, k, v and the result
    Dtype kv_dtype;
    int64_t unit_bytes;

    int64_t group() const { return heads / kv_heads; }
};

// Some tokens' queries, of all heads that share a key/value head, and a range of keys they see: what
// one thread computes at a time, for each key/value head.
struct AttentionItem {
    int32_t first, count;  // of `AttentionPlan::tokens`
    int64_t pages;         // entry of `AttentionPlan::pages` where those of the request begin
    int32_t begin, end;    // keys; `begin` is a multiple of PANEL
    int64_t partial;       // where in `partials` the unfinished result goes, or -1: it is the result
};

// Where one part of a token's result lies.
struct AttentionPart {
    int64_t at, head_stride;  // in `partials`, for the first query head of key/value head 0
};

struct AttentionMerge {
    int32_t token;
    int32_t first, count;  // of `parts`
};

// What one step computes. Filled once a step, used by every layer.
struct AttentionPlan {
    AttentionShape shape{};
    int64_t num_tokens = 0;
    int64_t most_rows = 0;  // query rows of one item
    double work = 0;        // about how many arithmetic operations
    std::vector<int64_t> slots;     // [T]
    std::vector<int32_t> position;  // [T]: the last key that the token sees
    std::vector<int32_t> tokens;
    std::vector<int32_t> pages;
    std::vector<AttentionItem> items;  // most work first
    std::vector<AttentionPart> parts;
    std::vector<AttentionMerge> merges;
    std::unique_ptr<float, void (*)(void*)> partials{nullptr, std::free};
    int64_t partials_size = 0;     // floats
    std::atomic<int64_t> next{0};  // of the items, one for each key/value head

    void clear(int64_t count) {
        num_tokens = count;
        most_rows = 0;
        work = 0;
        slots.resize(size_t(count));
        position.assign(size_t(count), -1);
        tokens.clear();
        pages.clear();
        items.clear();
        parts.clear();
        merges.clear();
    }
};

// An unfinished result: [largest exponent, sum of weights, unused.., D numbers rounded up to panels].
constexpr int64_t PART_HEAD = 16;
constexpr int64_t part_size(int64_t head_dim) { return PART_HEAD + round_up(head_dim, PANEL); }

struct Attention {
    const void *q, *k, *v;
    // Elements from token to token and from head to head; those of a head are neighbours.
    int64_t q_stride, q_head_stride, k_stride, k_head_stride, v_stride, v_head_stride;
    void* cache;
    void* out;  // [T, H, D]
    AttentionPlan* plan;
};

struct AttentionKernels {
    // Stores k and v at the plan's slots, then attends.
    void (*attention)(const Attention&, Team&);
};

// Bytes of a unit.
inline int64_t attention_unit_bytes(int64_t head_dim, Dtype kv_dtype) {
    const int64_t d = head_dim, values = round_up(d, PANEL);
    switch (kv_dtype) {
        case Dtype::f32: return PANEL * (d + values) * 4;
        case Dtype::bf16: return PANEL * (round_up(d, 2) + values) * 2;
        case Dtype::f16: return PANEL * (d + values) * 2;
        default: return PANEL * (d + values) + 2 * PANEL * 4;
    }
}

}  // namespace ek
