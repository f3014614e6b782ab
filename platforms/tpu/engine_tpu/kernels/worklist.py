"""Which queries meet which pages: what the grid walks, worked out from a step's metadata.

    queries of the step     | block 0 | block 1 | block 2 |
    requests                |  a  |  b    |  c  |  d  |
    pairs                   a0  b0  b1  c1  c2  d2           (request, block), in this order
    items of a pair         the groups of pages, oldest first, that any of its queries sees

An item is one step of the grid. How many there are follows from the lengths, so the grid's bound is
a number that the device computes; the arrays have room for the most that there could be.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from engine_tpu.kernels.tiling import Tiling


class WorkList(NamedTuple):
    """P pairs and W items at most, int32."""

    item_pair: jax.Array  # [W]
    pair_request: jax.Array  # [P]
    pair_block: jax.Array  # [P]
    pair_item: jax.Array  # [P+1]: its first item; the last entry is the number of items


def work_list(
    lengths_N: jax.Array,
    query_start_N1: jax.Array,
    chosen_N: jax.Array,
    *,
    tiling: Tiling,
    page_size: int,
    window: int | None,
) -> WorkList:
    """Of the requests that are `chosen` (bool) and have rows; their lengths are positive.

    With blocks of one query, request i has row i or none.
    """
    queries, group_tokens = tiling.block_queries, tiling.group_pages * page_size
    start, stop = query_start_N1[:-1], query_start_N1[1:]
    chosen_N = chosen_N & (stop > start)
    pair = jnp.arange(tiling.max_pairs, dtype=jnp.int32)
    if queries == 1:
        request, block, exists = pair, pair, chosen_N
    else:
        first_block = start // queries
        blocks_N = jnp.where(chosen_N, (stop - 1) // queries - first_block + 1, 0)
        ends = jnp.cumsum(blocks_N)
        exists = pair < ends[-1]
        request = _owner(ends, tiling.max_pairs)
        block = jnp.where(exists, first_block[request] + pair - (ends - blocks_N)[request], 0)

    shift = lengths_N[request] - stop[request]  # a row's position, less the row
    oldest = jnp.maximum(start[request], block * queries) + shift
    oldest = jnp.zeros_like(oldest) if window is None else jnp.maximum(oldest - window + 1, 0)
    last = jnp.minimum(stop[request], (block + 1) * queries) - 1 + shift
    groups = last // group_tokens - oldest // group_tokens + 1
    items = jnp.cumsum(jnp.where(exists, groups, 0), dtype=jnp.int32)
    return WorkList(_owner(items, tiling.max_items), request, block, jnp.pad(items, (1, 0)))


def _owner(ends: jax.Array, count: int) -> jax.Array:
    """[count]: of each number, the first place whose `ends` is greater; else the last place."""
    numbers = jnp.arange(count, dtype=ends.dtype)
    found = jnp.searchsorted(ends, numbers, side="right", method="compare_all")
    return jnp.minimum(found, ends.shape[0] - 1).astype(jnp.int32)
