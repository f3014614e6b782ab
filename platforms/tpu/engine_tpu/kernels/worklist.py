"""Which queries meet which pages: what the grid walks, worked out from a step's metadata.

    queries of the step     | block 0 | block 1 | block 2 |
    requests                |  a  |  b    |  c  |  d  |
    pairs                   a0  b0  b1  c1  c2  d2           (request, block), in this order
    items of a pair         the groups of pages, oldest first, that any of its queries sees

An item is one step of the grid. How many there are follows from the lengths, so the grid's bound is
a number that the device computes; the arrays have room for the most that there could be.

Letters: N requests, P pairs, W items, G pages of a group, B entries of a block table.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from engine_tpu.kernels.tiling import Tiling


class WorkList(NamedTuple):
    """int32; P and W are the most that there could be. Positions: of a request's tokens."""

    item_pair: jax.Array  # [W+1]
    item_page: jax.Array  # [W*G]: in the cache
    pair_item: jax.Array  # [P+1]: its first item; the last entry is the number of items
    pair_block: jax.Array  # [P]
    pair_low: jax.Array  # [P]: rows low:high of the step are the request's, within the block
    pair_high: jax.Array  # [P]
    pair_shift: jax.Array  # [P]: a row's position, less the row


def work_list(
    lengths_N: jax.Array,
    query_start_N1: jax.Array,
    table_NB: jax.Array,
    chosen_N: jax.Array,
    *,
    tiling: Tiling,
    page_size: int,
    window: int | None,
) -> WorkList:
    """Of the requests that are `chosen` (bool); their lengths are positive."""
    queries, group = tiling.block_queries, tiling.group_pages
    start, stop = query_start_N1[:-1], query_start_N1[1:]
    first_block = start // queries
    blocks = jnp.where(chosen_N & (stop > start), (stop - 1) // queries - first_block + 1, 0)
    ends = jnp.cumsum(blocks)
    pair = jnp.arange(tiling.max_pairs, dtype=jnp.int32)
    exists = pair < ends[-1]
    request = _owner(ends, tiling.max_pairs)
    block = jnp.where(exists, first_block[request] + pair - (ends - blocks)[request], 0)
    low = jnp.maximum(start[request], block * queries)
    high = jnp.where(exists, jnp.minimum(stop[request], (block + 1) * queries), low)
    shift = lengths_N[request] - stop[request]

    first = oldest(low + shift, window) // page_size  # of the pages that it sees
    last = (high - 1 + shift) // page_size
    groups = jnp.where(exists, last // group - first // group + 1, 0)
    items = jnp.cumsum(groups, dtype=jnp.int32)
    item_pair = _owner(items, tiling.max_items + 1)
    item, pair = jnp.arange(tiling.max_items, dtype=jnp.int32), item_pair[:-1]
    number = first[pair] // group + item - (items - groups)[pair]
    place_WG = number[:, None] * group + jnp.arange(group)
    seen_WG = (place_WG >= first[pair, None]) & (place_WG <= last[pair, None])
    page_WG = table_NB[request[pair, None], place_WG.clip(0, table_NB.shape[1] - 1)]
    page_WG = _early(page_WG, seen_WG & (item < items[-1])[:, None])
    bounds = jnp.pad(items, (1, 0))
    return WorkList(item_pair, page_WG.reshape(-1), bounds, block, low, high, shift)


def oldest(position: jax.Array, window: int | None) -> jax.Array:
    """Position of the oldest token that a row sees."""
    return jnp.zeros_like(position) if window is None else jnp.maximum(position - window + 1, 0)


def _owner(ends: jax.Array, count: int) -> jax.Array:
    """[count]: of each number, the first place whose `ends` is greater; else the last place."""
    numbers = jnp.arange(count, dtype=ends.dtype)
    found = jnp.searchsorted(ends, numbers, side="right", method="compare_all")
    return jnp.minimum(found, ends.shape[0] - 1).astype(jnp.int32)


def _early(page_WG: jax.Array, seen_WG: jax.Array) -> jax.Array:
    """Where an item sees no page, that of the next item which does: it is fetched before its time,
    and not again."""
    items = len(page_WG)
    item_WG = jnp.where(seen_WG, jnp.arange(items)[:, None], items - 1)
    return jnp.take_along_axis(page_WG, lax.cummin(item_WG, axis=0, reverse=True), axis=0)
