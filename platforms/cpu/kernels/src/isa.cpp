// Compiled once for each instruction set; EK_ISA is its name and the namespace of its copy.
#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "kernels.h"

#define EK_TEXT_(x) #x
#define EK_TEXT(x) EK_TEXT_(x)

namespace ek::EK_ISA {
namespace {

// clang-format off: the order matters
#include "simd.h"
#include "panel.h"
#include "linear.inl"
#include "pointwise.inl"
#include "attention.inl"
#include "quantized.inl"
#include "sampling.inl"
// clang-format on

}  // namespace

extern const Kernels table;
const Kernels table{EK_TEXT(EK_ISA),   linear_kernels,    pointwise_kernels,
                    attention_kernels, quantized_kernels, sampling_kernels};

}  // namespace ek::EK_ISA
