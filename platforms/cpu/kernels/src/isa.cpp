// Compiled once for each instruction set; EK_ISA is its name and the namespace of its copy.
#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "kernels.h"

// With tiles there is a second table: all else is the same.
#if defined(__AMX_BF16__) || (defined(EK_EMULATE_BF16) && defined(__AVX512F__))
#define EK_TILES 1
#endif

#define EK_TEXT_(x) #x
#define EK_TEXT(x) EK_TEXT_(x)

namespace ek::EK_ISA {
namespace {

// clang-format off: the order matters
#include "simd.h"
#include "panel.h"
#include "linear.inl"
#ifdef EK_TILES
#include "tiles.inl"
#endif
#include "pointwise.inl"
#include "attention.inl"
#include "quantized.inl"
#include "sampling.inl"
// clang-format on

}  // namespace

extern const Kernels table;
const Kernels table{EK_TEXT(EK_ISA),   linear_kernels,    pointwise_kernels,
                    attention_kernels, quantized_kernels, sampling_kernels};

#ifdef EK_TILES
extern const Kernels tiled_table;
const Kernels tiled_table{EK_TEXT(EK_TILED_ISA), tiled_linear_kernels, pointwise_kernels,
                          attention_kernels,     quantized_kernels,    sampling_kernels};
#endif

}  // namespace ek::EK_ISA
