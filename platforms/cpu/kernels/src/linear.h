// Linear layers over packed weights.
#pragma once
#include "team.h"

namespace ek {

// y[T, N] = x[T, K] @ w + bias. x and w have the same dtype.
struct Linear {
    const void* x;
    int64_t x_stride;  // elements from row to row
    const void* w;     // panels
    const float* bias; // [N], or null
    void* y;
    int64_t y_stride;
    int64_t k, n;
    Dtype dtype, y_dtype;  // y_dtype: that of x, or f32
};

struct LinearKernels {
    // Rows of a matrix [N, K] become panels of the same dtype.
    void (*pack)(const void* w, int64_t stride, void* panels, int64_t k, int64_t n, Dtype, Team&);
    // Row `id` of the matrix that was packed, for each of `ids`: y[T, K].
    void (*look_up)(const int64_t* ids, const void* panels, void* y, int64_t k, Dtype,
                    int64_t tokens, Team&);
    void (*linear)(const Linear&, int64_t tokens, Team&);
    size_t (*shared_bytes)(const Linear&, int64_t tokens);
};

}  // namespace ek
