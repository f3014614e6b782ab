"""The kernels of `sample`; which does what is in that module.

Shape legend: N rows that draw, C chunks, S tokens of a chunk.
"""

import triton
import triton.language as tl

from engine_triton.sampling.order import LOWEST, key_of, score_of
from engine_triton.sampling.weights import (
    CHUNK,
    MIN_P,
    PLACE,
    TEMPERATURE,
    TOP_K,
    TOP_P,
    UNIFORM_CHUNK,
    UNIFORM_TOKEN,
    UNITS,
    kth_largest,
    nucleus,
    number,
    pick,
    units,
    weigh,
    whole,
)


@triton.jit(do_not_specialize=["rows"])
def weigh_chunks(
    scores_ptr, highest_ptr, settings_ptr, maxima_ptr, sums_ptr, candidates_ptr, counts_ptr,
    rows, stride, vocab, chunks, ALL_CHUNKS: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """Programs (N, C / CHUNKS): highest score and sum of the weights of some chunks.

    Of a row whose floor is known already, only weights that reach it are summed.
    """
    row = tl.program_id(0)
    place = whole(settings_ptr, rows, row, PLACE).to(tl.int64)
    highest = tl.load(highest_ptr + place)
    temperature = number(settings_ptr, rows, row, TEMPERATURE)
    decided = (whole(settings_ptr, rows, row, TOP_K) == 0) & (
        number(settings_ptr, rows, row, TOP_P) >= 1.0
    )
    floor = tl.where(decided, number(settings_ptr, rows, row, MIN_P), 0.0)
    chunk_C = tl.program_id(1) * CHUNKS + tl.arange(0, CHUNKS)
    at_CS = chunk_C[:, None] * CHUNK + tl.arange(0, CHUNK)[None, :]
    scores_CS = tl.load(scores_ptr + place * stride + at_CS, at_CS < vocab, other=-float("inf"))
    maxima_C = tl.max(scores_CS, axis=1)
    sums_C = _kept_sums(scores_CS, at_CS < vocab, highest, temperature, LOWEST, floor)
    to_C = row.to(tl.int64) * chunks + chunk_C
    tl.store(maxima_ptr + to_C, maxima_C, chunk_C < chunks)
    tl.store(sums_ptr + to_C, sums_C, chunk_C < chunks)
    if tl.program_id(1) == 0:
        tl.store(counts_ptr + row, 0)


@triton.jit(do_not_specialize=["rows"])
def gather_candidates(
    scores_ptr, highest_ptr, settings_ptr, maxima_ptr, sums_ptr, candidates_ptr, counts_ptr,
    rows, stride, vocab, chunks,
    ALL_CHUNKS: tl.constexpr, CHUNKS: tl.constexpr, ROOM: tl.constexpr,
):  # fmt: skip
    """Programs (N, C / CHUNKS): copy scores above the bound, as far as there is room, in any order;
    count all of them."""
    row = tl.program_id(0)
    top_k = whole(settings_ptr, rows, row, TOP_K)
    top_p = number(settings_ptr, rows, row, TOP_P)
    if (top_k > 0) | (top_p < 1.0):
        place = whole(settings_ptr, rows, row, PLACE).to(tl.int64)
        highest = tl.load(highest_ptr + place)
        temperature = number(settings_ptr, rows, row, TEMPERATURE)
        bound, least = LOWEST, 0.0
        if top_k > 0:
            if top_k <= chunks:
                maxima = maxima_ptr + row.to(tl.int64) * chunks
                bound = kth_largest(maxima, chunks, top_k, ALL_CHUNKS)
        else:
            at_C = tl.arange(0, ALL_CHUNKS)
            sums = sums_ptr + row.to(tl.int64) * chunks + at_C
            total = tl.sum(tl.load(sums, at_C < chunks, other=0.0), axis=0)
            least = 0.5 * (1.0 - top_p) * total / vocab
        at = tl.program_id(1) * CHUNKS * CHUNK + tl.arange(0, CHUNKS * CHUNK)
        scores = tl.load(scores_ptr + place * stride + at, at < vocab, other=-float("inf"))
        found = (at < vocab) & (key_of(scores) >= bound)
        found = (found & (weigh(scores, highest, temperature) >= least)).to(tl.int32)
        count = tl.sum(found, axis=0)
        if count > 0:
            to = tl.atomic_add(counts_ptr + row, count) + tl.cumsum(found, axis=0) - found
            target = candidates_ptr + row.to(tl.int64) * ROOM + to
            tl.store(target, scores, (found > 0) & (to < ROOM))


@triton.jit(do_not_specialize=["rows"])
def choose_token(
    scores_ptr, highest_ptr, settings_ptr, maxima_ptr, sums_ptr, candidates_ptr, counts_ptr,
    rows, stride, vocab, chunks, ids_ptr,
    ALL_CHUNKS: tl.constexpr, CHUNKS: tl.constexpr, ROOM: tl.constexpr,
):  # fmt: skip
    """Programs (N): a row's token. ROOM 0: no row of this step has top-k or top-p."""
    row = tl.program_id(0)
    place = whole(settings_ptr, rows, row, PLACE).to(tl.int64)
    highest = tl.load(highest_ptr + place)
    temperature = number(settings_ptr, rows, row, TEMPERATURE)
    scores_ptr += place * stride
    maxima_ptr += row.to(tl.int64) * chunks
    sums_ptr += row.to(tl.int64) * chunks
    cutoff, floor = LOWEST, number(settings_ptr, rows, row, MIN_P)
    if ROOM:
        top_k = whole(settings_ptr, rows, row, TOP_K)
        top_p = number(settings_ptr, rows, row, TOP_P)
        if (top_k > 0) | (top_p < 1.0):
            source = candidates_ptr + row.to(tl.int64) * ROOM
            length = tl.load(counts_ptr + row)
            if length > ROOM:
                source = scores_ptr
                length = vocab
            cutoff, floor = _filter(
                source, length, sums_ptr, chunks, highest, temperature, top_k, top_p, floor,
                ALL_CHUNKS, CHUNKS * CHUNK,
            )  # fmt: skip
            _sum_again(
                scores_ptr, maxima_ptr, sums_ptr, vocab, chunks, highest, temperature,
                cutoff, floor, CHUNKS,
            )  # fmt: skip
            tl.debug_barrier()  # every lane reads what others of this program wrote
    at_C = tl.arange(0, ALL_CHUNKS)
    sums_C = tl.load(sums_ptr + at_C, at_C < chunks, other=0.0)
    chunk = pick(sums_C, number(settings_ptr, rows, row, UNIFORM_CHUNK), ALL_CHUNKS)
    at_S = chunk * CHUNK + tl.arange(0, CHUNK)
    scores_S = tl.load(scores_ptr + at_S, at_S < vocab, other=-float("inf"))
    weights_S = weigh(scores_S, highest, temperature)
    kept_S = (at_S < vocab) & (key_of(scores_S) >= cutoff) & (weights_S >= floor)
    weights_S = tl.where(kept_S, weights_S, 0.0)
    token = chunk * CHUNK + pick(weights_S, number(settings_ptr, rows, row, UNIFORM_TOKEN), CHUNK)
    tl.store(ids_ptr + row, tl.minimum(token, vocab - 1).to(tl.int64))


@triton.jit
def _filter(
    source, length, sums_ptr, chunks, highest, temperature, top_k, top_p, floor,
    ALL_CHUNKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The least key and the least weight that are kept: of top-k first, then top-p and min-p."""
    cutoff = LOWEST
    if top_k > 0:
        cutoff = kth_largest(source, length, top_k, BLOCK)
    if top_p < 1.0:
        if top_k > 0:
            total, _, _ = units(source, length, highest, temperature, cutoff, 0, BLOCK)
        else:
            at_C = tl.arange(0, ALL_CHUNKS)
            sums_C = tl.load(sums_ptr + at_C, at_C < chunks, other=0.0)
            total = tl.sum((sums_C * UNITS).to(tl.int64), axis=0)
        target = tl.maximum((top_p * total.to(tl.float32)).to(tl.int64), 1)
        least = nucleus(source, length, highest, temperature, cutoff, target, BLOCK)
        floor = tl.maximum(floor, least)
    return cutoff, floor


@triton.jit
def _sum_again(
    scores_ptr, maxima_ptr, sums_ptr, vocab, chunks, highest, temperature, cutoff, floor,
    CHUNKS: tl.constexpr,
):  # fmt: skip
    """The sums of all chunks, of what the filters keep. Chunks that they empty are not read."""
    for first in range(0, chunks, CHUNKS):
        chunk_C = first + tl.arange(0, CHUNKS)
        best_C = tl.load(maxima_ptr + chunk_C, chunk_C < chunks, other=-float("inf"))
        sums_C = tl.zeros([CHUNKS], tl.float32)
        best = tl.max(key_of(best_C), axis=0)
        if (best >= cutoff) & (weigh(score_of(best), highest, temperature) >= floor):
            at_CS = chunk_C[:, None] * CHUNK + tl.arange(0, CHUNK)[None, :]
            scores_CS = tl.load(scores_ptr + at_CS, at_CS < vocab, other=-float("inf"))
            sums_C = _kept_sums(scores_CS, at_CS < vocab, highest, temperature, cutoff, floor)
        tl.store(sums_ptr + chunk_C, sums_C, chunk_C < chunks)


@triton.jit
def _kept_sums(scores_CS, valid_CS, highest, temperature, cutoff, floor):
    weights_CS = weigh(scores_CS, highest, temperature)
    kept_CS = valid_CS & (key_of(scores_CS) >= cutoff) & (weights_CS >= floor)
    return tl.sum(tl.where(kept_CS, weights_CS, 0.0), axis=1)
