#include "sampling.h"

#include "kernels.h"

using namespace ek;

// highest[M] and ids[M] of scores[M, V] float; `stride` elements from row to row.
EK_EXPORT int ek_argmax(const float* scores, int64_t stride, int64_t vocabulary, float* highest,
                        int64_t* ids, int64_t tokens) {
    const Argmax args{scores, stride, vocabulary, highest, ids};
    return submit(
        tokens, double(vocabulary) / 4,  // many are compared at once
        [=](int64_t count, Team& team) { kernels().sampling.argmax(args, count, team); },
        [=](int64_t count) { return kernels().sampling.argmax_shared_bytes(args, count); });
}

// ids[N] drawn from rows places[N] of scores[M, V] float. highest[M] is that of `ek_argmax`;
// temperature, top_p, min_p [N] and uniforms [N, 2] are float, top_k [N] is int64 (0: all).
EK_EXPORT int ek_sample(const float* scores, int64_t stride, int64_t vocabulary,
                        const float* highest, const int64_t* places, const float* temperature,
                        const int64_t* top_k, const float* top_p, const float* min_p,
                        const float* uniforms, int64_t* ids, int64_t tokens) {
    const Sample args{scores, stride, vocabulary, highest, places,   temperature,
                      top_k,  top_p,  min_p,      uniforms, ids};
    return submit(tokens, 20.0 * double(vocabulary), [=](int64_t count, Team& team) {
        kernels().sampling.sample(args, count, team);
    });
}
