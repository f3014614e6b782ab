// Linear layers over weights of 8 or 4 bits.
#pragma once
#include "team.h"

namespace ek {

// y[T, N] = x[T, K] @ w + bias, with x rounded to 8 bits on the way.
struct QuantizedLinear {
    const void* x;
    int64_t x_stride;  // elements from row to row
    const void* w;     // packed
    const float* bias; // [N], or null
    void* y;
    int64_t y_stride;
    int64_t k, n;
    int32_t bits;          // of w: 8 or 4
    Dtype dtype, y_dtype;  // y_dtype: that of x, or f32
};

struct QuantizedKernels {
    // Rows of a matrix [N, K] become packed panels.
    void (*pack)(const void* w, int64_t stride, void* packed, int64_t k, int64_t n, int32_t bits,
                 Dtype, Team&);
    // Row `id` of the matrix that was packed, as it was rounded, for each of `ids`: y[T, K].
    void (*look_up)(const int64_t* ids, const void* packed, void* y, int64_t k, int32_t bits, Dtype,
                    int64_t tokens, Team&);
    void (*linear)(const QuantizedLinear&, int64_t tokens, Team&);
    size_t (*shared_bytes)(const QuantizedLinear&, int64_t tokens);
};

// Weights that share a scale: so many in a row along K, of one column.
constexpr int64_t quantized_group(int32_t bits) { return bits == 8 ? 64 : 32; }

// Bytes of a group of one panel: its scales (bf16) and its weights.
constexpr int64_t quantized_block(int32_t bits) {
    return PANEL * (2 + quantized_group(bits) * bits / 8);
}

}  // namespace ek
