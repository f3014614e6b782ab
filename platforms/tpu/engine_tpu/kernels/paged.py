"""The attention kernel: online softmax over the pages that a block of queries sees.

One step of the grid is one item of the work list: a block of queries, one request, one group of its
pages, each of which is an operand. While it computes, Pallas fetches what the next item has and
this one has not. Requests that share a block of queries share its accumulators: to a row of another
request nothing is added.

Letters: Q blocks of queries, K key/value heads, R rows of a block for one of these heads (its query
heads, each with all queries of the block), L lanes.

Online softmax: Milakov and Gimelshein, 2018 (arXiv:1805.02867); in blocks: Dao et al., 2022
(arXiv:2205.14135); over pages: Kwon et al., 2023 (arXiv:2309.06180).
"""

import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from engine_tpu.kernels.pages import LANES
from engine_tpu.kernels.tiling import Tiling
from engine_tpu.kernels.worklist import WorkList, oldest

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

    def page(place: int) -> pl.BlockSpec:
        def index(group: Any, item: Any, *scalars: Any) -> tuple[Any, ...]:
            number = WorkList(*scalars).item_page[item * tiling.group_pages + place]
            return number, 0, group, 0, 0

        return pl.BlockSpec((1, parts, heads, page_size, lanes), index)

    def block(group: Any, item: Any, *scalars: Any) -> tuple[Any, ...]:
        work = WorkList(*scalars)
        return work.pair_block[work.item_pair[item]], group, 0, 0

    queries = pl.BlockSpec((1, heads, num_rows, lanes), block)
    statistic = pltpu.VMEM((heads, num_rows, LANES), jnp.float32)
    out: jax.Array = pl.pallas_call(
        functools.partial(_kernel, scores=scores, tiling=tiling),
        out_shape=jax.ShapeDtypeStruct(q_QKRL.shape, q_QKRL.dtype),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(work),
            grid=(tiling.head_groups, jnp.maximum(work.pair_item[-1], 1)),
            in_specs=[queries, *map(page, range(tiling.group_pages))],
            out_specs=queries,
            scratch_shapes=[
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
    )(*work, q_QKRL, *(pages,) * tiling.group_pages)
    return out


def _kernel(*refs: Any, scores: Scores, tiling: Tiling) -> None:
    count = len(WorkList._fields)
    work = WorkList(*refs[:count])
    q_ref, *page_refs, out_ref, most_ref, sum_ref, acc_ref = refs[count:]
    item = pl.program_id(1)
    pair = work.item_pair[item]
    block, before, after = (
        work.pair_block[work.item_pair[one]] for one in (item, jnp.maximum(item - 1, 0), item + 1)
    )
    tokens = len(page_refs) * page_refs[0].shape[3]
    since = oldest(work.pair_low[pair] + work.pair_shift[pair], scores.window)
    first = (lax.div(since, tokens) + item - work.pair_item[pair]) * tokens  # of the group
    seen, real = _masks(work, pair, first, (q_ref.shape[2], tokens), scores, tiling)

    @pl.when((item == 0) | (before != block))
    def _() -> None:
        most_ref[...] = jnp.full_like(most_ref, UNSEEN)
        sum_ref[...] = jnp.zeros_like(sum_ref)
        acc_ref[...] = jnp.zeros_like(acc_ref)

    def head(number: Any, _: None) -> None:
        key, value = (
            jnp.concatenate([page[0, part, number] for page in page_refs])
            for part in (0, page_refs[0].shape[1] - 1)
        )
        score = jnp.where(seen, scores(_product(q_ref[0, number], key, 1)), MASKED)
        value = jnp.where(real, value, jnp.zeros_like(value))
        before = most_ref[number, :, :1]
        most = jnp.maximum(before, score.max(axis=1, keepdims=True))
        weight, faded = jnp.exp2(score - most), jnp.exp2(before - most)
        total = sum_ref[number, :, :1] * faded + weight.sum(axis=1, keepdims=True)
        added = _product(weight.astype(value.dtype), value, 0)
        acc_ref[number] = acc_ref[number] * faded + added
        most_ref[number] = jnp.broadcast_to(most, most_ref.shape[1:])
        sum_ref[number] = jnp.broadcast_to(total, sum_ref.shape[1:])

    lax.fori_loop(0, len(acc_ref), head, None, unroll=tiling.heads_together)

    @pl.when((item + 1 == pl.num_programs(1)) | (after != block))
    def _() -> None:
        total = jnp.maximum(sum_ref[:, :, :1], 1e-30)  # rows of nobody have none
        out_ref[0] = (acc_ref[...] / total).astype(out_ref.dtype)


def _masks(
    work: WorkList, pair: Any, first: Any, shape: tuple[int, int], scores: Scores, tiling: Tiling
) -> tuple[jax.Array, jax.Array]:
    """Which tokens a row sees [rows, tokens], and which any row does [tokens, 1]. `first`: the
    position of the first token.

    What nobody wrote or fetched may be NaN, which a weight of 0 does not undo.
    """
    rows, tokens = shape
    low, high, shift = work.pair_low[pair], work.pair_high[pair], work.pair_shift[pair]
    row = work.pair_block[pair] * tiling.block_queries
    row += _iota((rows, 1), 0) & (tiling.block_queries - 1)
    position = jnp.where((row >= low) & (row < high), row + shift, -1)
    back = position - first - _iota((rows, tokens), 1)
    seen = back >= 0 if scores.window is None else (back >= 0) & (back < scores.window)
    place = first + _iota((tokens, 1), 0)
    return seen, (place >= oldest(low + shift, scores.window)) & (place < high + shift)


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
