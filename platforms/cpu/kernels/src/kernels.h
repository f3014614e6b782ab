// All kernels of one instruction set.
#pragma once
#include "attention.h"
#include "linear.h"
#include "pointwise.h"
#include "quantized.h"
#include "sampling.h"

namespace ek {

struct Kernels {
    const char* isa;
    LinearKernels linear;
    PointwiseKernels pointwise;
    AttentionKernels attention;
    QuantizedKernels quantized;
    SamplingKernels sampling;
};

// Those of the best instruction set that this processor has, or of the one ENGINE_CPU_ISA names.
const Kernels& kernels();

}  // namespace ek
