// Operations on single numbers and rows: norms, rotary positions, gated activations, embedding.
#pragma once
#include "team.h"

namespace ek {

// x[T, rows, width]: `rows` of every token are normed on their own. y lies without gaps.
struct RmsNorm {
    const void* x;
    int64_t token_stride, row_stride;  // elements
    int64_t rows;
    const void* weight;  // [width]
    void* y;
    int64_t width;
    float eps;
    Dtype dtype, weight_dtype;  // weight_dtype: that of x, or f32
};

// total[T, width] = x + residual, rounded to their dtype; y = norm of total.
struct AddRmsNorm {
    const void *x, *residual;
    int64_t x_stride, residual_stride;
    const void* weight;
    void *y, *total;
    int64_t width;
    float eps;
    Dtype dtype, weight_dtype;
};

// cos and sin [T, half] of positions[t] * frequencies[i], times `scale`.
struct RotaryAngles {
    const int64_t* positions;
    const float* frequencies;
    float scale;
    float *cos, *sin;
    int64_t half;
};

// Heads of one matrix [T, heads, head_dim]; `y` lies without gaps.
struct Heads {
    const void* x;
    int64_t token_stride, head_stride;
    int64_t heads;
    void* y;
};

// The first 2 * half numbers of each head are rotated, the others are copied.
struct Rotary {
    Heads q, k;
    const float *cos, *sin;  // [T, half]
    int64_t head_dim, half;
    Dtype dtype;
};

// y[T, width] = activation(x[:, :width]) * x[:, width:].
struct Gate {
    const void* x;
    int64_t stride;
    void* y;
    int64_t width;
    Dtype dtype;
};

// y[t] = weight[ids[t]], rows of `bytes`; a row of zeros for an id that is not in 0..rows-1.
struct Embedding {
    const int64_t* ids;
    const std::byte* weight;
    int64_t stride;  // bytes
    int64_t rows;
    std::byte* y;
    int64_t bytes;
};

struct PointwiseKernels {
    void (*rms_norm)(const RmsNorm&, int64_t tokens, Team&);
    void (*add_rms_norm)(const AddRmsNorm&, int64_t tokens, Team&);
    void (*rotary_angles)(const RotaryAngles&, int64_t tokens, Team&);
    void (*rotary)(const Rotary&, int64_t tokens, Team&);
    void (*silu_and_multiply)(const Gate&, int64_t tokens, Team&);
    void (*gelu_tanh_and_multiply)(const Gate&, int64_t tokens, Team&);
    void (*embedding)(const Embedding&, int64_t tokens, Team&);
};

}  // namespace ek
