"""What the kernels of `sample` share: a row's settings, its weights, and searches through them.

Shape legend: N rows that draw, C chunks.
"""

import triton
import triton.language as tl

from engine_triton.sampling.order import HIGHEST, LOWEST, key_of

#: Tokens of a chunk, as the core's operation has them: chunks decide which token a number draws.
CHUNK = tl.constexpr(512)
#: Weights are summed in whole numbers of 1 / UNITS: in any order the sum is the same.
UNITS = tl.constexpr(2.0**40)

#: Rows of the settings, in 32 bits each.
PLACE = tl.constexpr(0)
TOP_K = tl.constexpr(1)
TEMPERATURE = tl.constexpr(2)
TOP_P = tl.constexpr(3)
MIN_P = tl.constexpr(4)
UNIFORM_CHUNK = tl.constexpr(5)
UNIFORM_TOKEN = tl.constexpr(6)


@triton.jit
def whole(settings_ptr, rows, row, which):
    return tl.load(settings_ptr + which * rows + row)


@triton.jit
def number(settings_ptr, rows, row, which):
    return tl.load(settings_ptr + which * rows + row).to(tl.float32, bitcast=True)


@triton.jit
def weigh(scores, highest, temperature):
    """Relative to the most likely token's: float32 from 0 to 1."""
    return tl.exp(tl.div_rn(scores - highest, temperature))


@triton.jit
def kth_largest(scores_ptr, length, k, BLOCK: tl.constexpr):
    """The key of the k-th largest of `length` scores (1 <= k <= length), equal ones counted apart.

    Bit by bit from the top: a bit belongs to the key if k scores or more are at least what it
    makes of the bits so far. Once exactly k are, it is the least of theirs.
    """
    above = _count(scores_ptr, length, 0, BLOCK)
    found = tl.where(above >= k, 0, LOWEST)
    above = tl.where(above >= k, above, length)
    bit = 1 << 30
    while (bit > 0) & (above > k):
        count = _count(scores_ptr, length, found + bit, BLOCK)
        found = tl.where(count >= k, found + bit, found)
        above = tl.where(count >= k, count, above)
        bit = bit >> 1
    least = tl.full([BLOCK], HIGHEST, tl.int32)
    for start in range(0, length, BLOCK):
        at = start + tl.arange(0, BLOCK)
        keys = key_of(tl.load(scores_ptr + at, at < length, other=0.0))
        least = tl.minimum(least, tl.where((keys >= found) & (at < length), keys, HIGHEST))
    return tl.min(least, axis=0)


@triton.jit
def _count(scores_ptr, length, least, BLOCK: tl.constexpr):
    """How many scores have a key of `least` or more."""
    counts = tl.zeros([BLOCK], tl.int32)
    for start in range(0, length, BLOCK):
        at = start + tl.arange(0, BLOCK)
        keys = key_of(tl.load(scores_ptr + at, at < length, other=0.0))
        counts += ((keys >= least) & (at < length)).to(tl.int32)
    return tl.sum(counts, axis=0)


@triton.jit
def nucleus(scores_ptr, length, highest, temperature, cutoff, target, BLOCK: tl.constexpr):
    """The smallest weight of the nucleus: the fewest that sum to `target` units, and their equals;
    or all, where rounding leaves the target out of reach.

    Only scores with a key of `cutoff` or more count. The bits of a weight, read as a whole number,
    order as weights do: they are found as those of `kth_largest` are, until one weight is left.
    """
    found = tl.zeros([], tl.int32)
    bit = 1 << 29  # of 1.0 no higher one is set
    inside, above = length, 0  # weights that have the bits so far or more, and surely more
    while (bit > 0) & (inside > above + 1):
        mass, count, _ = units(scores_ptr, length, highest, temperature, cutoff, found + bit, BLOCK)
        reached = mass >= target
        found = tl.where(reached, found + bit, found)
        inside = tl.where(reached, count, inside)
        above = tl.where(reached, above, count)
        bit = bit >> 1
    _, _, smallest = units(scores_ptr, length, highest, temperature, cutoff, found, BLOCK)
    return smallest


@triton.jit
def units(scores_ptr, length, highest, temperature, cutoff, least, BLOCK: tl.constexpr):
    """Of the weights whose bits are at least `least`, with a key of `cutoff` or more: their sum,
    int64, how many they are, and the smallest (of none, infinity)."""
    sums = tl.zeros([BLOCK], tl.int64)
    counts = tl.zeros([BLOCK], tl.int32)
    smallest = tl.full([BLOCK], float("inf"), tl.float32)
    for start in range(0, length, BLOCK):
        at = start + tl.arange(0, BLOCK)
        scores = tl.load(scores_ptr + at, at < length, other=0.0)
        weights = weigh(scores, highest, temperature)
        kept = (at < length) & (key_of(scores) >= cutoff)
        kept = kept & (weights.to(tl.int32, bitcast=True) >= least)
        sums += tl.where(kept, (weights * UNITS).to(tl.int64), 0)
        counts += kept.to(tl.int32)
        smallest = tl.minimum(smallest, tl.where(kept, weights, float("inf")))
    return tl.sum(sums, axis=0), tl.sum(counts, axis=0), tl.min(smallest, axis=0)


@triton.jit
def pick(weights, uniform, SIZE: tl.constexpr):
    """Index of the first positive weight at which the running sum exceeds its share.

    Where the share was rounded up to all of the sum, the likeliest. Weights that are no numbers
    give some index.
    """
    at = tl.arange(0, SIZE)
    running = tl.cumsum(weights, axis=0)
    total = tl.sum(tl.where(at == SIZE - 1, running, 0.0), axis=0)
    beyond = (running > uniform * total) & (weights > 0.0)
    first = tl.min(tl.where(beyond, at, SIZE), axis=0)
    largest = tl.max(weights, axis=0)
    likeliest = tl.min(tl.where(weights == largest, at, SIZE - 1), axis=0)
    return tl.where(first < SIZE, first, likeliest)
