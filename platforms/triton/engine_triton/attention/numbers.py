"""Numbers as a cache keeps them: saturated, and fp8 by its bits.

fp8 formats (Micikevicius et al., 2022, "FP8 formats for deep learning"; e4m3fnuz: Noune et al.,
2022, "8-bit numerical formats for deep neural networks"):

    format     exponent  mantissa  bias  largest  NaN
    e4m3       4 bits    3 bits      7       448  0x7F
    e5m2       5         2          15     57344  0x7F (and 0x7D, 0x7E)
    e4m3fnuz   4         3           8       240  0x80, the place of -0
"""

import triton
import triton.language as tl


@triton.jit
def encoded(x, FORMAT: tl.constexpr, dtype: tl.constexpr):
    """`x` (float32) as numbers of a cache: rounded to even, the largest number instead of more.

    FORMAT "plain": in `dtype`; else the bits of that format. NaN stays NaN.
    """
    if FORMAT == "plain":
        if dtype == tl.float16:
            x = _within(x, 65504.0)
        return x.to(dtype)
    elif FORMAT == "e4m3":
        return _bits(x, 448.0, 7, 3, 0x7F).to(dtype)
    elif FORMAT == "e4m3fnuz":
        return _bits(x, 240.0, 8, 3, 0x80).to(dtype)
    else:
        return _bits(x, 57344.0, 15, 2, 0x7F).to(dtype)


@triton.jit
def decoded(x, FORMAT: tl.constexpr, COMPUTE: tl.constexpr):
    """Numbers of a cache as operands of matrix products; of "e4m3", 2**-8 of what they are.

    A byte's exponent and mantissa, put where float16 has them, are the number at another bias:
    subnormal numbers too. "e4m3" NaN (0x7F) is not kept: it becomes 480.
    """
    if FORMAT == "e4m3":
        wide = x.to(tl.int8, bitcast=True).to(tl.int16)  # the sign's bit in all upper places
        return ((wide << 7) & -16385).to(tl.float16, bitcast=True).to(COMPUTE)
    elif FORMAT == "e5m2":
        return (x.to(tl.int16) << 8).to(tl.float16, bitcast=True).to(COMPUTE)
    else:
        return x.to(COMPUTE)


@triton.jit
def operand(x, COMPUTE: tl.constexpr):
    """Queries as operands of matrix products."""
    return encoded(x.to(tl.float32), "plain", COMPUTE)


@triton.jit
def _within(x, largest: tl.constexpr):
    """`x` between -largest and largest; NaN stays."""
    return tl.where(tl.abs(x) > largest, tl.where(x > 0, largest, -largest), x)


@triton.jit
def _bits(x, LARGEST: tl.constexpr, BIAS: tl.constexpr, MANTISSA: tl.constexpr, NAN: tl.constexpr):
    """int32: sign, exponent and mantissa of the nearest number of such a format, ties to even."""
    size = tl.where(tl.abs(x) > LARGEST, LARGEST, tl.abs(x))
    DROPPED: tl.constexpr = 23 - MANTISSA
    bits = size.to(tl.int32, bitcast=True)
    # Half of the last place, less one unless the last place is odd: ties go to even.
    rounded = bits + ((1 << (DROPPED - 1)) - 1) + ((bits >> DROPPED) & 1)
    normal = (rounded >> DROPPED) - ((127 - BIAS) << MANTISSA)
    # Below the smallest normal number: adding 2**23 leaves a float32 no places after the point.
    SUBNORMALS: tl.constexpr = 2.0 ** (BIAS - 1 + MANTISSA)
    whole = (size * SUBNORMALS + 8388608.0).to(tl.int32, bitcast=True) & 0xFF
    code = tl.where(size < 2.0 ** (1 - BIAS), whole, normal)
    negative = (x < 0) & (code != 0) if NAN == 0x80 else x < 0
    return tl.where(x == x, tl.where(negative, code | 0x80, code), NAN)
