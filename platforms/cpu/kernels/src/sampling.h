// Choosing a token from each row of scores.
#pragma once
#include "team.h"

namespace ek {

// Of each row of scores[M, V]: the highest, and the lowest id that has it. A row with a NaN in it
// has highest NaN, and some id.
struct Argmax {
    const float* scores;
    int64_t stride;
    int64_t vocabulary;
    float* highest;
    int64_t* ids;
};

// ids[n]: drawn from row places[n] of scores[M, V], by `weight` = exp((score - highest) / temperature)
// among the tokens that the filters leave. As in the core's reference a filter is a floor, and ties
// with the last token kept are kept:
//     top_k   (0: off) scores under the k-th highest go
//     top_p   (1: off) of what is left, the smallest set of likeliest tokens with this share stays
//     min_p   (0: off) weights under it go
// A row whose `highest` is not finite gives id 0.
struct Sample {
    const float* scores;
    int64_t stride;
    int64_t vocabulary;
    const float* highest;   // [M]
    const int64_t* places;  // [N]
    const float* temperature;
    const int64_t* top_k;
    const float *top_p, *min_p;
    const float* uniforms;  // [N, 2]: which chunk of the vocabulary, and which token of it
    int64_t* ids;
};

struct SamplingKernels {
    void (*argmax)(const Argmax&, int64_t tokens, Team&);
    size_t (*argmax_shared_bytes)(const Argmax&, int64_t tokens);
    void (*sample)(const Sample&, int64_t tokens, Team&);
};

}  // namespace ek
