"""What decode and prefill kernels share.

M rows (query heads of tokens), N keys of a tile, D head dim, padded to a power of two.
"""

import triton
import triton.language as tl

from engine_triton.attention.numbers import decoded


@triton.jit
def key_rows(
    table,
    first,
    stop,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_STRIDE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Where tokens first:first+BLOCK_N of a request lie in a cache, of head 0: [N] int64.

    `table`: the request's block table. A tile of one block needs one entry of it; smaller blocks
    have one looked up for each token before `stop`.
    """
    columns = tl.arange(0, BLOCK_N)
    if BLOCK_SIZE % BLOCK_N == 0:
        block = tl.load(table + first // BLOCK_SIZE).to(tl.int64)
        return block * BLOCK_STRIDE + (first % BLOCK_SIZE + columns) * HEAD_DIM
    else:
        tokens = first + columns
        block = tl.load(table + tokens // BLOCK_SIZE, mask=tokens < stop, other=0).to(tl.int64)
        return block * BLOCK_STRIDE + (tokens % BLOCK_SIZE) * HEAD_DIM


@triton.jit
def key_tile(
    at,
    rows,
    seen,
    FORMAT: tl.constexpr,
    COMPUTE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_PAD: tl.constexpr,
    MASKED: tl.constexpr,
):
    """[N, D] of keys or values, ready for a product. Rows not `seen` [N] are 0, where MASKED."""
    columns = tl.arange(0, HEAD_PAD)
    places = at + rows[:, None] + columns[None, :]
    if MASKED:
        if HEAD_PAD == HEAD_DIM:
            x = tl.load(places, mask=seen[:, None], other=0.0)
        else:
            x = tl.load(places, mask=seen[:, None] & (columns < HEAD_DIM)[None, :], other=0.0)
    elif HEAD_PAD == HEAD_DIM:
        x = tl.load(places)
    else:
        x = tl.load(places, mask=(columns < HEAD_DIM)[None, :], other=0.0)
    return decoded(x, FORMAT, COMPUTE)


@triton.jit
def attend(
    q,
    k,
    v,
    highest,
    total,
    sums,
    seen,
    scale,
    SOFT_CAP: tl.constexpr,
    MASKED: tl.constexpr,
):
    """One tile's step of softmax by parts (Milakov and Gimelshein, 2018; Dao et al., 2022).

    q [M, D], k and v [N, D], highest and total [M] and sums [M, D] float32, seen [M, N]. Scores
    are for powers of two: `scale` has log2(e) in it, unless they are capped (`scaled_for`).
    """
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    if SOFT_CAP is not None:
        scores = (2 * tl.sigmoid(2 * scores) - 1) * (SOFT_CAP * 1.4426950408889634)
    if MASKED:
        scores = tl.where(seen, scores, float("-inf"))
    now = tl.maximum(highest, tl.max(scores, 1))
    base = now
    if MASKED:
        base = tl.where(now == float("-inf"), 0.0, now)  # of a row that has seen no key yet
    weights = tl.exp2(scores - base[:, None])
    shrink = tl.exp2(highest - base)
    total = total * shrink + tl.sum(weights, 1)
    sums = tl.dot(weights.to(v.dtype), v, sums * shrink[:, None], input_precision="ieee")
    return now, total, sums


@triton.jit
def divided(sums, total, FACTOR: tl.constexpr):
    """The result [M, D] of all tiles' sums and totals; 0 for rows that saw no key."""
    some = total > 0
    return sums * tl.where(some, FACTOR / tl.where(some, total, 1.0), 0.0)[:, None]


@triton.jit
def store_rows(out, lines, result, real, HEAD_DIM: tl.constexpr, HEAD_PAD: tl.constexpr):
    """Writes `result` [M, D], where it is `real`, to the lines [M] of `out` [lines, HEAD_DIM]."""
    at = out + lines[:, None] * HEAD_DIM + tl.arange(0, HEAD_PAD)[None, :]
    tl.store(at, result.to(out.dtype.element_ty), mask=real)


def scaled_for(scale: float, soft_cap: float | None, factor: float) -> float:
    """What `attend` multiplies scores with; `factor`: of a cache's numbers."""
    if soft_cap is None:
        return scale * factor * 1.4426950408889634
    return scale * factor / soft_cap
