"""The attention kernel: online softmax over the pages that a block of queries sees.

One step of the grid is one item of the work list: a block of queries, one request, one group of its
pages. While it computes, the pages of the next item are on their way; only pages that some query of
the block sees are fetched. Requests that share a block of queries share its accumulators: to a row
of another request nothing is added.

Letters: Q blocks of queries, K key/value heads, R rows of a block for one of these heads (its query
heads, each with all queries of the block), L lanes, N requests, B entries of a block table.

Online softmax: Milakov and Gimelshein, 2018 (arXiv:1805.02867); in blocks: Dao et al., 2022
(arXiv:2205.14135); over pages: Kwon et al., 2023 (arXiv:2309.06180).
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from engine_tpu.kernels.pages import LANES
from engine_tpu.kernels.tiling import Tiling
from engine_tpu.kernels.worklist import WorkList

UNSEEN = -1e30  # a row's greatest score before it has any
MASKED = -2e30  # lower, so that its weight is 0 even then


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Which tokens a query sees, and how products become scores."""

    scale: float
    window: int | None
    soft_cap: float | None

    def __call__(self, products: jax.Array) -> jax.Array:
        """Scores to the base 2, the exponential unit's own."""
        if self.soft_cap is None:
            return products * (self.scale / math.log(2))
        capped = jnp.tanh(products * (self.scale / self.soft_cap))
        return capped * (self.soft_cap / math.log(2))


def paged_attention(
    q_QKRL: jax.Array,
    pages: jax.Array,
    lengths_N: jax.Array,
    query_start_N1: jax.Array,
    block_table_NB: jax.Array,
    work: WorkList,
    *,
    scores: Scores,
    tiling: Tiling,
    interpret: Any,
) -> jax.Array:
    """[Q, K, R, L] in the type of q; blocks without an item are not written."""
    _, num_heads, num_rows, lanes = q_QKRL.shape
    _, parts, _, page_size, _ = pages.shape
    heads = num_heads // tiling.head_groups
    block = pl.BlockSpec(
        (1, heads, num_rows, lanes),
        lambda group, item, pair, _, block, *__: (block[pair[item]], group, 0, 0),
    )
    statistic = pltpu.VMEM((heads, num_rows, LANES), jnp.float32)
    out: jax.Array = pl.pallas_call(
        functools.partial(
            _kernel, table_pages=block_table_NB.shape[1], scores=scores, tiling=tiling
        ),
        out_shape=jax.ShapeDtypeStruct(q_QKRL.shape, q_QKRL.dtype),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=7,
            grid=(tiling.head_groups, jnp.maximum(work.pair_item[-1], 1)),
            in_specs=[block, pl.BlockSpec(memory_space=pl.ANY)],
            out_specs=block,
            scratch_shapes=[
                pltpu.VMEM((2, tiling.group_pages, parts, heads, page_size, lanes), pages.dtype),
                pltpu.SemaphoreType.DMA((2,)),
                statistic,
                statistic,
                pltpu.VMEM((heads, num_rows, lanes), jnp.float32),
            ],
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=tiling.vmem_bytes
        ),
        interpret=interpret,
        name="decode_attention" if tiling.block_queries == 1 else "chunk_attention",
    )(*work, lengths_N, query_start_N1, block_table_NB.reshape(-1), q_QKRL, pages)
    return out


class _Scalars(NamedTuple):
    """As in `WorkList` and `paged_attention`."""

    item_pair: Any
    pair_request: Any
    pair_block: Any
    pair_item: Any
    lengths: Any
    query_start: Any
    table: Any


class _Item(NamedTuple):
    """Positions are those of the request's tokens."""

    request: Any
    block: Any
    low: Any  # rows low:high of the step are the request's, within the block
    high: Any
    shift: Any  # a row's position, less the row
    oldest: Any  # position of the oldest token that a row sees
    group: Any


def _kernel(*refs: Any, table_pages: int, scores: Scores, tiling: Tiling) -> None:
    scalars = _Scalars(*refs[:7])
    q_ref, pages, out_ref, fetched, arrived, most_ref, sum_ref, acc_ref = refs[7:]
    head_group, number = pl.program_id(0), pl.program_id(1)
    count = scalars.pair_item[scalars.pair_item.shape[0] - 1]
    heads, page_size = fetched.shape[3:5]
    tokens = tiling.group_pages * page_size
    describe = functools.partial(
        _describe, scalars=scalars, queries=tiling.block_queries, tokens=tokens, scores=scores
    )

    def each_page(item: _Item, slot: Any, act: Callable[[Any], None]) -> None:
        """Of the group's pages, those that a query of the item sees."""
        first = item.group * tiling.group_pages
        last = lax.div(item.high - 1 + item.shift, page_size)

        def one(place: Any, _: None) -> None:
            page = scalars.table[item.request * table_pages + place]
            source = pages.at[page, :, pl.ds(head_group * heads, heads)]
            act(pltpu.make_async_copy(source, fetched.at[slot, place - first], arrived.at[slot]))

        start = jnp.maximum(first, lax.div(item.oldest, page_size))
        lax.fori_loop(start, jnp.minimum(first + tiling.group_pages, last + 1), one, None)

    def begin() -> None:
        most_ref[...] = jnp.full_like(most_ref, UNSEEN)
        sum_ref[...] = jnp.zeros_like(sum_ref)
        acc_ref[...] = jnp.zeros_like(acc_ref)

    def attend() -> None:
        each_page(item, slot, lambda copy: copy.wait())
        whole = (item.high - item.low == tiling.block_queries) & (
            (item.group + 1) * tokens <= item.low + item.shift + 1
        )
        if scores.window is not None:
            whole &= item.high - 1 + item.shift - item.group * tokens < scores.window
        arguments = (item, q_ref, fetched.at[slot], most_ref, sum_ref, acc_ref, scores, tiling)
        pl.when(whole)(lambda: _attend(*arguments, masked=False))
        pl.when(~whole)(lambda: _attend(*arguments, masked=True))

    def end() -> None:
        def head(number: Any) -> None:
            total = jnp.maximum(sum_ref[number, :, :1], 1e-30)  # rows of nobody have none
            out_ref[0, number] = (acc_ref[number] / total).astype(out_ref.dtype)

        _each(heads, tiling.heads_together, head)

    item, slot = describe(number), lax.rem(number, 2)
    before = scalars.pair_block[scalars.item_pair[jnp.maximum(number - 1, 0)]]
    after = scalars.pair_block[
        scalars.item_pair[jnp.clip(number + 1, 0, jnp.maximum(count, 1) - 1)]
    ]
    pl.when((number == 0) & (count > 0))(lambda: each_page(item, slot, lambda copy: copy.start()))
    pl.when(number + 1 < count)(
        lambda: each_page(describe(number + 1), 1 - slot, lambda copy: copy.start())
    )
    pl.when((number == 0) | (before != item.block))(begin)
    pl.when(number < count)(attend)
    pl.when((number + 1 >= count) | (after != item.block))(end)


def _describe(
    number: Any, *, scalars: _Scalars, queries: int, tokens: int, scores: Scores
) -> _Item:
    """Item `number`; a group has so many `tokens`."""
    pair = scalars.item_pair[number]
    request, block = scalars.pair_request[pair], scalars.pair_block[pair]
    start, stop = scalars.query_start[request], scalars.query_start[request + 1]
    low = jnp.maximum(start, block * queries)
    high = jnp.minimum(stop, (block + 1) * queries)
    shift = scalars.lengths[request] - stop
    oldest = 0 if scores.window is None else jnp.maximum(low + shift - scores.window + 1, 0)
    group = lax.div(oldest, tokens) + number - scalars.pair_item[pair]
    return _Item(request, block, low, high, shift, oldest, group)


def _attend(
    item: _Item,
    q_ref: Any,
    fetched: Any,
    most_ref: Any,
    sum_ref: Any,
    acc_ref: Any,
    scores: Scores,
    tiling: Tiling,
    *,
    masked: bool,
) -> None:
    """Add a group of pages to the accumulators. Not `masked`: every row sees all of its tokens."""
    rows = q_ref.shape[2]
    group_pages, parts, heads, page_size, lanes = fetched.shape
    tokens = group_pages * page_size
    if masked:
        row = item.block * tiling.block_queries
        row += _iota((rows, 1), 0) & (tiling.block_queries - 1)
        ours = (row >= item.low) & (row < item.high)
        position = jnp.where(ours, row + item.shift, -1) - item.group * tokens
        back = position - _iota((rows, tokens), 1)
        seen = back >= 0
        if scores.window is not None:
            seen &= back < scores.window
        # What nobody wrote or fetched may be NaN, which a weight of 0 does not undo.
        place = item.group * tokens + _iota((tokens, 1), 0)
        real = (place >= item.oldest) & (place < item.high + item.shift)

    def head(number: Any) -> None:
        key = fetched[:, 0, number].reshape(tokens, lanes)
        value = fetched[:, parts - 1, number].reshape(tokens, lanes)
        score = scores(_product(q_ref[0, number], key, 1))
        if masked:
            score = jnp.where(seen, score, MASKED)
            value = jnp.where(real, value, jnp.zeros_like(value))
        before = most_ref[number, :, :1]
        most = jnp.maximum(before, score.max(axis=1, keepdims=True))
        weight, faded = jnp.exp2(score - most), jnp.exp2(before - most)
        total = sum_ref[number, :, :1] * faded + weight.sum(axis=1, keepdims=True)
        added = _product(weight.astype(value.dtype), value, 0)
        acc_ref[number] = acc_ref[number] * faded + added
        most_ref[number] = jnp.broadcast_to(most, (rows, LANES))
        sum_ref[number] = jnp.broadcast_to(total, (rows, LANES))

    _each(heads, tiling.heads_together, head)


def _each(count: int, together: int, act: Callable[[Any], None]) -> None:
    """`act(0)` to `act(count - 1)`, up to `together` at a time side by side."""
    together = max(size for size in range(1, together + 1) if count % size == 0)

    def some(number: Any, _: None) -> None:
        for place in range(together):
            act(number * together + place)

    lax.fori_loop(0, count // together, some, None)


def _iota(shape: tuple[int, int], axis: int) -> jax.Array:
    return lax.broadcasted_iota(jnp.int32, shape, axis)


def _product(a: jax.Array, b: jax.Array, axis: int) -> jax.Array:
    """Of a [M, X] and `axis` of b, in float32."""
    return lax.dot_general(
        a,
        b,
        (((1,), (axis,)), ((), ())),
        precision=lax.Precision.HIGHEST if a.dtype == jnp.float32 else lax.Precision.DEFAULT,
        preferred_element_type=jnp.float32,
    )
