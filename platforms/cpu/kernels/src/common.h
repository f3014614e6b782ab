// Types that every part of the library shares.
#pragma once
#include <cstddef>
#include <cstdint>

#define EK_EXPORT extern "C" __attribute__((visibility("default")))

namespace ek {

// Numbers of the C interface; `engine_cpu_kernels/library.py` has the same.
enum class Dtype : int32_t { f32 = 0, bf16 = 1, f16 = 2, i8 = 3 };

// Storage only: arithmetic is in float.
struct bf16 {
    uint16_t bits;
};
struct f16 {
    uint16_t bits;
};

constexpr int64_t PANEL = 32;  // columns of a panel

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

struct Range {
    int64_t begin, end;
};

// Part `rank` of `size` nearly equal parts of 0..count, cut at multiples of `grain`.
inline Range part_of(int64_t count, int64_t rank, int64_t size, int64_t grain = 1) {
    const int64_t grains = ceil_div(count, grain);
    const int64_t begin = grains * rank / size * grain, end = grains * (rank + 1) / size * grain;
    return {begin < count ? begin : count, end < count ? end : count};
}

}  // namespace ek
