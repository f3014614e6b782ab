"""Scores as whole numbers that order as they do.

The bits of a positive float32 rise with it; those of a negative one fall, so all but the sign are
turned around. 0 and -0 are one number, and NaN is above everything.
"""

import triton
import triton.language as tl

#: The key of nothing: below every score's.
LOWEST = tl.constexpr(-(2**31))
#: The key of a NaN, and an index beyond every other.
HIGHEST = tl.constexpr(2**31 - 1)


@triton.jit
def key_of(x):
    """int32 of float32."""
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)
    return tl.where(x != x, HIGHEST, bits ^ ((bits >> 31) & HIGHEST))


@triton.jit
def score_of(key):
    """float32 of int32: what `key_of` made a key of."""
    return (key ^ ((key >> 31) & HIGHEST)).to(tl.float32, bitcast=True)
