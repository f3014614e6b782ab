#include "attention.h"

#include <algorithm>

#include "kernels.h"

using namespace ek;

extern "C" int ek_threads();

namespace {

// Query rows that share what is read of the keys: enough that multiplying takes longer than reading.
constexpr int64_t ITEM_ROWS = 48;
// A range of keys that several threads share has at least so many.
constexpr int64_t LEAST_KEYS = 128;
// Parts into which the work is cut, for each thread: the last ones end at about the same time.
constexpr int64_t CUTS = 8;
// Keys need not be read so often: what makes it worth while to attend to a common beginning apart.
constexpr int64_t SHARED_KEYS = 128;
// Requests with more tokens multiply more than they read, so that sharing gains nothing.
constexpr int64_t SHARING_TOKENS = 8;
// What a key costs an item whatever its rows, as rows: it must be read.
constexpr int64_t READING = 8;

struct Request {
    int32_t first, count;  // tokens of the step
    int32_t length;
    int64_t pages;   // its first entry of the plan's pages
    int32_t shared;  // keys that a common item attends to
};

// Fills a plan.
class Planner {
   public:
    explicit Planner(AttentionPlan& plan) : plan_(plan), shape_(plan.shape) {}

    void run(const int32_t* query_start, const int32_t* lengths, const int32_t* table,
             int64_t table_stride, int64_t num_requests, bool share) {
        read(query_start, lengths, table, table_stride, num_requests);
        if (share && shape_.window == 0) find_shared();
        for (const Request& one : requests_) add_own(one);
        cut();
        order();
    }

   private:
    void read(const int32_t* query_start, const int32_t* lengths, const int32_t* table,
              int64_t table_stride, int64_t num_requests) {
        for (int64_t i = 0; i < num_requests; i++) {
            const int32_t first = query_start[i], count = query_start[i + 1] - first;
            if (count < 1) continue;
            requests_.push_back({first, count, lengths[i], int64_t(plan_.pages.size()), 0});
            for (int32_t t = 0; t < count; t++)
                plan_.position[size_t(first + t)] = lengths[i] - count + t;
            const int64_t blocks = ceil_div(lengths[i], PANEL * shape_.block_pages);
            for (int64_t b = 0; b < blocks; b++)
                for (int64_t p = 0; p < shape_.block_pages; p++)
                    plan_.pages.push_back(
                        int32_t(table[i * table_stride + b] * shape_.block_pages + p));
        }
    }

    // Pages that every token of the request sees whole.
    int64_t whole_pages(const Request& one) const { return (one.length - one.count + 1) / PANEL; }
    int32_t page(const Request& one, int64_t index) const {
        return plan_.pages[size_t(one.pages + index)];
    }

    void find_shared() {
        std::vector<int32_t> all;
        for (size_t i = 0; i < requests_.size(); i++)
            if (requests_[i].count <= SHARING_TOKENS) all.push_back(int32_t(i));
        share(all.data(), all.data() + all.size(), 0);
    }

    // Requests begin..end have the same pages before `depth`. Those that go on with a common page go
    // on together: as far as all of them do in an item of their own, then in smaller sets.
    void share(int32_t* begin, int32_t* end, int64_t depth) {
        const auto key = [&](int32_t i) {
            const Request& one = requests_[size_t(i)];
            return depth < whole_pages(one) ? page(one, depth) : -1;
        };
        if (end - begin < 2) return;
        std::sort(begin, end, [&](int32_t a, int32_t b) {
            const int32_t x = key(a), y = key(b);
            return x != y ? x < y : a < b;
        });
        for (int32_t* from = begin; from < end;) {
            int32_t* to = from + 1;
            while (to < end && key(*to) == key(*from)) to++;
            if (to - from > 1 && key(*from) >= 0) share_set(from, to, depth);
            from = to;
        }
    }

    void share_set(int32_t* begin, int32_t* end, int64_t depth) {
        const Request& model = requests_[size_t(*begin)];
        int64_t common = whole_pages(model);
        for (int32_t* other = begin + 1; other < end; other++) {
            const Request& one = requests_[size_t(*other)];
            const int64_t most = std::min(common, whole_pages(one));
            for (common = depth; common < most && page(model, common) == page(one, common);) common++;
        }
        const int32_t from = model.shared, to = int32_t(common * PANEL);
        if ((to - from) * (end - begin - 1) >= SHARED_KEYS && to - from >= 2 * PANEL) {
            std::vector<int32_t> tokens;
            for (int32_t* i = begin; i < end; i++) {
                Request& one = requests_[size_t(*i)];
                for (int32_t t = 0; t < one.count; t++) tokens.push_back(one.first + t);
                one.shared = to;
            }
            add_shared(tokens, model.pages, from, to);
        }
        share(begin, end, common);
    }

    void add_own(const Request& one) {
        const int64_t most = std::max<int64_t>(1, ITEM_ROWS / shape_.group());
        const int64_t tiles = ceil_div(one.count, most);
        std::vector<int32_t> tokens;
        for (int64_t tile = 0; tile < tiles; tile++) {
            const Range range = part_of(one.count, tile, tiles);
            tokens.clear();
            for (int64_t t = range.begin; t < range.end; t++)
                tokens.push_back(one.first + int32_t(t));
            const int64_t seen = plan_.position[size_t(tokens.front())] + 1;
            int64_t begin = shape_.window && seen > shape_.window ? seen - shape_.window : 0;
            begin = std::max<int64_t>(begin / PANEL * PANEL, one.shared);
            const int32_t end = plan_.position[size_t(tokens.back())] + 1;
            if (begin < end) add_item(tokens.data(), tokens.size(), one.pages, int32_t(begin), end);
        }
    }

    void add_shared(const std::vector<int32_t>& tokens, int64_t pages, int32_t begin, int32_t end) {
        const int64_t most = std::max<int64_t>(1, ITEM_ROWS / shape_.group());
        const int64_t count = int64_t(tokens.size()), tiles = ceil_div(count, most);
        for (int64_t tile = 0; tile < tiles; tile++) {
            const Range range = part_of(count, tile, tiles);
            add_item(tokens.data() + range.begin, size_t(range.end - range.begin), pages, begin, end);
            plan_.items.back().partial = 0;
        }
    }

    void add_item(const int32_t* tokens, size_t count, int64_t pages, int32_t begin, int32_t end) {
        plan_.items.push_back(
            {int32_t(plan_.tokens.size()), int32_t(count), pages, begin, end, -1});
        plan_.tokens.insert(plan_.tokens.end(), tokens, tokens + count);
        plan_.most_rows = std::max(plan_.most_rows, int64_t(count) * shape_.group());
    }

    int64_t cost(const AttentionItem& item) const {
        return (item.count * shape_.group() + READING) * (item.end - item.begin);
    }

    // Cuts items that would keep one thread busy for long after the others, and gives all that have
    // only a part of some token's keys a place for their unfinished results.
    void cut() {
        int64_t total = 0;
        for (const AttentionItem& item : plan_.items) {
            total += cost(item) * shape_.kv_heads;
            plan_.work += 4.0 * double(item.count * shape_.heads * shape_.head_dim) *
                          double(item.end - item.begin);
        }
        const int64_t threads = ek_threads();
        const int64_t most = threads > 1 ? total / (threads * CUTS) + 1 : total + 1;
        std::vector<AttentionItem> whole;
        whole.swap(plan_.items);
        parts_of_.assign(size_t(plan_.num_tokens), 0);
        merged_.assign(size_t(plan_.num_tokens), false);
        for (const AttentionItem& item : whole) {
            const int64_t keys = item.end - item.begin;
            const int64_t parts = std::clamp<int64_t>(ceil_div(cost(item), most), 1,
                                                      std::max<int64_t>(1, keys / LEAST_KEYS));
            for (int64_t part = 0; part < parts; part++) {
                const Range range = part_of(keys, part, parts, PANEL);
                AttentionItem piece = item;
                piece.begin = item.begin + int32_t(range.begin);
                piece.end = item.begin + int32_t(range.end);
                plan_.items.push_back(piece);
            }
            for (int32_t i = 0; i < item.count; i++) {
                const size_t token = size_t(plan_.tokens[size_t(item.first + i)]);
                parts_of_[token] += int32_t(parts);
                if (parts > 1 || item.partial == 0) merged_[token] = true;
            }
        }
        place_parts();
    }

    void place_parts() {
        const int64_t size = part_size(shape_.head_dim), group = shape_.group();
        // parts_of_ becomes the number of the token's merge, or -1.
        int32_t parts = 0;
        for (int64_t token = 0; token < plan_.num_tokens; token++) {
            int32_t& count = parts_of_[size_t(token)];
            if (merged_[size_t(token)]) {
                plan_.merges.push_back({int32_t(token), parts, 0});
                parts += count;
                count = int32_t(plan_.merges.size()) - 1;
            } else {
                count = -1;
            }
        }
        plan_.parts.resize(size_t(parts));
        int64_t used = 0;
        for (AttentionItem& item : plan_.items) {
            // Of an item's tokens all need merging, or none: they are in the same shared items.
            const int32_t* tokens = &plan_.tokens[size_t(item.first)];
            if (parts_of_[size_t(tokens[0])] < 0) continue;
            item.partial = used;
            const int64_t stride = item.count * group * size;
            for (int32_t i = 0; i < item.count; i++) {
                AttentionMerge& merge = plan_.merges[size_t(parts_of_[size_t(tokens[i])])];
                plan_.parts[size_t(merge.first + merge.count++)] = {used + i * group * size, stride};
            }
            used += stride * shape_.kv_heads;
        }
        if (used > plan_.partials_size) {
            plan_.partials.reset(static_cast<float*>(
                std::aligned_alloc(64, size_t(round_up(used * 4, 4096)))));
            if (!plan_.partials) throw std::bad_alloc();
            plan_.partials_size = used;
        }
    }

    void order() {
        std::stable_sort(plan_.items.begin(), plan_.items.end(),
                         [&](const AttentionItem& a, const AttentionItem& b) {
                             return cost(a) > cost(b);
                         });
    }

    AttentionPlan& plan_;
    const AttentionShape& shape_;
    std::vector<Request> requests_;
    std::vector<int32_t> parts_of_;  // [T]
    std::vector<bool> merged_;       // [T]: the result is in parts
};

}  // namespace

// A plan for layers of one shape. window and soft_cap: 0 for none. dtypes as in `Dtype`.
EK_EXPORT AttentionPlan* ek_attention_plan_new(int64_t heads, int64_t kv_heads, int64_t head_dim,
                                               int64_t block_pages, int64_t window, float scale,
                                               float soft_cap, int32_t dtype, int32_t kv_dtype) {
    auto* plan = new AttentionPlan;
    plan->shape = {heads,
                   kv_heads,
                   head_dim,
                   block_pages,
                   window,
                   scale,
                   soft_cap,
                   Dtype(dtype),
                   Dtype(kv_dtype),
                   attention_unit_bytes(head_dim, Dtype(kv_dtype))};
    return plan;
}
EK_EXPORT void ek_attention_plan_free(AttentionPlan* plan) { delete plan; }

// Bytes of one page of one key/value head.
EK_EXPORT int64_t ek_attention_unit_bytes(int64_t head_dim, int32_t kv_dtype) {
    return attention_unit_bytes(head_dim, Dtype(kv_dtype));
}

// Fills the plan anew for one step; everything is copied. query_start [N+1], lengths [N] (of the
// cache, with the step's own tokens), block_table [N, ...] with `table_stride` elements from row to
// row, slots [T], negative for tokens that are not stored. share: attend once to what requests have
// in common.
EK_EXPORT void ek_attention_plan(AttentionPlan* plan, const int32_t* query_start,
                                 const int32_t* lengths, const int32_t* block_table,
                                 int64_t table_stride, const int64_t* slots, int64_t num_requests,
                                 int64_t num_tokens, int32_t share) {
    plan->clear(num_tokens);
    std::copy_n(slots, num_tokens, plan->slots.data());
    Planner(*plan).run(query_start, lengths, block_table, table_stride, num_requests, share != 0);
}

// How many tokens' results are in parts that are merged at the end.
EK_EXPORT int64_t ek_attention_plan_merges(const AttentionPlan* plan) {
    return int64_t(plan->merges.size());
}

// out [T, H, D]: stores k and v [T, K, D] in the cache of a layer, then q [T, H, D] attends as the
// plan says; of rows that belong to no request nothing is written. Strides are in elements; those of
// a head are neighbours. The plan is read when the kernel runs, T too.
EK_EXPORT int ek_attention(AttentionPlan* plan, const void* q, int64_t q_stride,
                           int64_t q_head_stride, const void* k, int64_t k_stride,
                           int64_t k_head_stride, const void* v, int64_t v_stride,
                           int64_t v_head_stride, void* cache, void* out, int64_t tokens) {
    const Attention args{q,        k,        v,           q_stride, q_head_stride, k_stride,
                         k_head_stride, v_stride, v_head_stride, cache,    out,           plan};
    // How long the requests are is not known here: small plans stay on one thread by themselves.
    return submit(tokens, 1e9, [=](int64_t, Team& team) { kernels().attention.attention(args, team); });
}
