#include "linear.h"

#include "kernels.h"

using namespace ek;

// Bytes of the panels of a matrix [N, K].
EK_EXPORT int64_t ek_linear_bytes(int64_t k, int64_t n, int32_t dtype) {
    const int64_t size = Dtype(dtype) == Dtype::f32 ? 4 : 2;
    return round_up(n, PANEL) * (Dtype(dtype) == Dtype::bf16 ? round_up(k, 2) : k) * size;
}

// w: [N, K], `stride` elements from row to row. Not part of a step: runs at once, also while recording.
EK_EXPORT void ek_linear_pack(const void* w, int64_t stride, void* panels, int64_t k, int64_t n,
                              int32_t dtype) {
    at_once(double(k) * double(n),
            [=](Team& team) { kernels().linear.pack(w, stride, panels, k, n, Dtype(dtype), team); });
}

// y[T, K]: rows `ids` [T] int64, all in 0..N-1, of the matrix that was packed.
EK_EXPORT int ek_linear_look_up(const int64_t* ids, const void* panels, void* y, int64_t k,
                                int32_t dtype, int64_t tokens) {
    return submit(tokens, double(k) * 8, [=](int64_t count, Team& team) {
        kernels().linear.look_up(ids, panels, y, k, Dtype(dtype), count, team);
    });
}

// y[T, N] = x[T, K] @ w.T + bias; bias [N] float or null; y_dtype is dtype or f32.
EK_EXPORT int ek_linear(const void* x, int64_t x_stride, const void* panels, const float* bias,
                        void* y, int64_t y_stride, int64_t k, int64_t n, int32_t dtype,
                        int32_t y_dtype, int64_t tokens) {
    const Linear args{x, x_stride, panels, bias,         y,
                      y_stride, k, n,      Dtype(dtype), Dtype(y_dtype)};
    return submit(
        tokens, 2.0 * double(k) * double(n),
        [=](int64_t count, Team& team) { kernels().linear.linear(args, count, team); },
        [=](int64_t count) { return kernels().linear.shared_bytes(args, count); });
}
