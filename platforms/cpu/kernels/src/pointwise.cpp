#include "pointwise.h"

#include "kernels.h"

using namespace ek;

// Strides count elements; the last dimension of everything is contiguous. Results lie without gaps
// in memory of their own. Arithmetic is in float and rounded to the dtype once.

// y[T, rows, width] = x / sqrt(mean(x^2) + eps) * weight, of x[T, rows, width].
// weight_dtype is dtype or f32.
EK_EXPORT int ek_rms_norm(const void* x, int64_t token_stride, int64_t row_stride, int64_t rows,
                          const void* weight, void* y, int64_t width, float eps, int32_t dtype,
                          int32_t weight_dtype, int64_t tokens) {
    const RmsNorm args{x,     token_stride, row_stride, rows,         weight,
                       y,     width,        eps,        Dtype(dtype), Dtype(weight_dtype)};
    return submit(tokens, 4.0 * double(rows * width), [=](int64_t count, Team& team) {
        kernels().pointwise.rms_norm(args, count, team);
    });
}

// total[T, width] = x + residual, rounded; y = the norm of total. y and total are two matrices.
EK_EXPORT int ek_add_rms_norm(const void* x, int64_t x_stride, const void* residual,
                              int64_t residual_stride, const void* weight, void* y, void* total,
                              int64_t width, float eps, int32_t dtype, int32_t weight_dtype,
                              int64_t tokens) {
    const AddRmsNorm args{x, residual, x_stride, residual_stride, weight,
                          y, total,    width,    eps,             Dtype(dtype),
                          Dtype(weight_dtype)};
    return submit(tokens, 5.0 * double(width), [=](int64_t count, Team& team) {
        kernels().pointwise.add_rms_norm(args, count, team);
    });
}

// cos, sin [T, half] float = scale * those of positions[T] * frequencies[half].
// The product is rounded to float, the functions of it are right to the last place up to 1e8 radians.
EK_EXPORT int ek_rotary_angles(const int64_t* positions, const float* frequencies, int64_t half,
                               float scale, float* cos, float* sin, int64_t tokens) {
    const RotaryAngles args{positions, frequencies, scale, cos, sin, half};
    return submit(tokens, 40.0 * double(half), [=](int64_t count, Team& team) {
        kernels().pointwise.rotary_angles(args, count, team);
    });
}

// Of q[T, q_heads, head_dim] and k[T, k_heads, head_dim], numbers i and half + i of each head are
// rotated against each other by the angle of cos, sin [T, half], i < half; 2 * half.. are copied.
EK_EXPORT int ek_rotary(const void* q, int64_t q_token_stride, int64_t q_head_stride,
                        int64_t q_heads, void* q_rotated, const void* k, int64_t k_token_stride,
                        int64_t k_head_stride, int64_t k_heads, void* k_rotated, const float* cos,
                        const float* sin, int64_t head_dim, int64_t half, int32_t dtype,
                        int64_t tokens) {
    const Rotary args{{q, q_token_stride, q_head_stride, q_heads, q_rotated},
                      {k, k_token_stride, k_head_stride, k_heads, k_rotated},
                      cos, sin, head_dim, half, Dtype(dtype)};
    return submit(tokens, 4.0 * double((q_heads + k_heads) * head_dim),
                  [=](int64_t count, Team& team) {
                      kernels().pointwise.rotary(args, count, team);
                  });
}

// y[T, width] = silu(x[:, :width]) * x[:, width:], of x[T, 2 * width].
EK_EXPORT int ek_silu_and_multiply(const void* x, int64_t stride, void* y, int64_t width,
                                   int32_t dtype, int64_t tokens) {
    const Gate args{x, stride, y, width, Dtype(dtype)};
    return submit(tokens, 16.0 * double(width), [=](int64_t count, Team& team) {
        kernels().pointwise.silu_and_multiply(args, count, team);
    });
}

// y[T, width] = gelu(x[:, :width], the approximation with tanh) * x[:, width:].
EK_EXPORT int ek_gelu_tanh_and_multiply(const void* x, int64_t stride, void* y, int64_t width,
                                        int32_t dtype, int64_t tokens) {
    const Gate args{x, stride, y, width, Dtype(dtype)};
    return submit(tokens, 20.0 * double(width), [=](int64_t count, Team& team) {
        kernels().pointwise.gelu_tanh_and_multiply(args, count, team);
    });
}

// y[T, width] = weight[ids]; zeros for an id that is not one of the rows.
EK_EXPORT int ek_embedding(const int64_t* ids, const void* weight, int64_t stride, int64_t rows,
                           void* y, int64_t width, int32_t dtype, int64_t tokens) {
    const int64_t size = Dtype(dtype) == Dtype::f32 ? 4 : 2;
    const Embedding args{ids,  static_cast<const std::byte*>(weight), stride * size,
                         rows, static_cast<std::byte*>(y),            width * size};
    return submit(tokens, double(width), [=](int64_t count, Team& team) {
        kernels().pointwise.embedding(args, count, team);
    });
}
