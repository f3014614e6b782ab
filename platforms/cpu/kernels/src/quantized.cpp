#include "quantized.h"

#include "kernels.h"

using namespace ek;

// Everywhere: `bits` is 8 or 4; "packed" begins at a multiple of 64 bytes.

// Bytes of a packed matrix [N, K].
EK_EXPORT int64_t ek_quantized_bytes(int64_t k, int64_t n, int32_t bits) {
    return ceil_div(n, PANEL) * ceil_div(k, quantized_group(bits)) * quantized_block(bits);
}

// w: [N, K] of `dtype`, `stride` elements from row to row. Not part of a step: runs at once, also
// while recording.
EK_EXPORT void ek_quantized_pack(const void* w, int64_t stride, void* packed, int64_t k, int64_t n,
                                 int32_t bits, int32_t dtype) {
    at_once(double(k) * double(n) * 10, [=](Team& team) {
        kernels().quantized.pack(w, stride, packed, k, n, bits, Dtype(dtype), team);
    });
}

// y[T, K] of `dtype`: rows `ids` [T] int64, all in 0..N-1, of the matrix that was packed.
EK_EXPORT int ek_quantized_look_up(const int64_t* ids, const void* packed, void* y, int64_t k,
                                   int32_t bits, int32_t dtype, int64_t tokens) {
    return submit(tokens, double(k) * 16, [=](int64_t count, Team& team) {
        kernels().quantized.look_up(ids, packed, y, k, bits, Dtype(dtype), count, team);
    });
}

// y[T, N] = x[T, K] @ w.T + bias; x is of `dtype`, y of `y_dtype`, which is dtype or f32; bias [N]
// float or null. Each group of x is rounded to 8 bits, with a scale of its own.
EK_EXPORT int ek_quantized_linear(const void* x, int64_t x_stride, const void* packed,
                                  const float* bias, void* y, int64_t y_stride, int64_t k,
                                  int64_t n, int32_t bits, int32_t dtype, int32_t y_dtype,
                                  int64_t tokens) {
    const QuantizedLinear args{x, x_stride, packed, bias, y, y_stride, k, n, bits, Dtype(dtype),
                               Dtype(y_dtype)};
    return submit(
        tokens, 2.0 * double(k) * double(n),
        [=](int64_t count, Team& team) { kernels().quantized.linear(args, count, team); },
        [=](int64_t count) { return kernels().quantized.shared_bytes(args, count); });
}
