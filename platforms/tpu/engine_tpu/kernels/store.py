"""Writes the step's keys and values to their places in the cache.

A row is less than a tile of memory, and a tile is the least that a copy can move. So the rows of a
*run*, consecutive tokens that go to one strip of a page, are written together, a run a step of the
grid: the strip is fetched, the run's rows are put into it, and it is put back.

    tokens       | t0 t1 t2 t3 t4 | t5 t6 | t7 |                  of three requests
    strips       | .. .. t0 t1 | t2 t3 t4 .. | t5 t6 .. .. | .. .. .. t7 |      four runs

Letters: T tokens, K key/value heads, D head dim, S tokens a page, L lanes.
"""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from engine.errors import UnsupportedError
from engine_tpu.kernels.pages import page_shape, rows_of, tile_rows

STRIP_BYTES = 2**20  # of a strip of many rows, at most
VMEM_BYTES = 32 * 2**20


class Runs(NamedTuple):
    """Of at most T runs, int32 [T]."""

    token: jax.Array  # the run's first token
    slot: jax.Array  # of that token
    length: jax.Array


def store_kv(
    pages: jax.Array,
    k_TKD: jax.Array,
    v_TKD: jax.Array,
    slots_T: jax.Array,
    *,
    interpret: Any = False,
) -> jax.Array:
    """`pages` with the tokens' keys and values at their slots, `page * S + offset`.

    A token whose slot is negative, or past the cache, is not stored. Tokens that go to the same
    strip of a page are next to each other in the step, as a request's tokens are; of several that
    go to the same slot any may win.

    Raises:
        UnsupportedError: the shapes do not belong together.
    """
    tokens, num_kv_heads, head_dim = k_TKD.shape
    num_pages, _, _, page_size, _ = pages.shape
    right = page_shape(num_kv_heads, head_dim, page_size)
    if pages.shape[1:] != right or k_TKD.shape != v_TKD.shape or pages.dtype != k_TKD.dtype:
        raise UnsupportedError(
            f"keys {k_TKD.dtype}{k_TKD.shape} and values {v_TKD.dtype}{v_TKD.shape} do not go to"
            f" pages {pages.dtype}{pages.shape[1:]}; they would be {k_TKD.dtype}{right}"
        )
    rows = rows_of(k_TKD, v_TKD)
    long_runs = tokens > 512 and 64 * (rows.nbytes // tokens) <= STRIP_BYTES
    strip = min(page_size, 64 if long_runs else tile_rows(pages.dtype))
    runs, count = _runs(slots_T, num_pages * page_size, strip)
    # Two strips of the rows hold a run, wherever it begins.
    rows = jnp.pad(rows, ((0, 0), (0, 0), (0, -tokens % strip + strip), (0, 0)))
    return _write(pages, rows, runs, count, strip, interpret)


def _runs(slots_T: jax.Array, num_slots: int, strip: int) -> tuple[Runs, jax.Array]:
    """The runs and how many there are. A run ends where the slots jump, and with its strip."""
    tokens = len(slots_T)
    token_T = jnp.arange(tokens, dtype=jnp.int32)
    again_T = slots_T == _before(slots_T)  # as padding is, which all goes to one slot
    valid_T = (slots_T >= 0) & (slots_T < num_slots) & ~again_T
    slots_T = jnp.where(valid_T, slots_T, -2).astype(jnp.int32)
    starts_T = (slots_T != _before(slots_T) + 1) | (slots_T % strip == 0)
    ends_T = jnp.concatenate([starts_T[1:] | ~valid_T[1:], jnp.ones(1, bool)])
    first_T = jnp.sort(jnp.where(starts_T & valid_T, token_T, tokens))
    last_T = jnp.sort(jnp.where(ends_T & valid_T, token_T, tokens))
    count = (first_T < tokens).sum(dtype=jnp.int32)
    exists_T = token_T < count
    token_T = jnp.where(exists_T, first_T, 0)
    slot_T = jnp.where(exists_T, slots_T[token_T], 0)
    return Runs(token_T, slot_T, jnp.where(exists_T, last_T - first_T + 1, 0)), count


def _before(slots_T: jax.Array) -> jax.Array:
    return jnp.concatenate([jnp.full(1, -2, slots_T.dtype), slots_T[:-1]])


def _write(
    pages: jax.Array, rows: jax.Array, runs: Runs, count: jax.Array, strip: int, interpret: Any
) -> jax.Array:
    parts, heads, _, lanes = rows.shape
    strips = pages.shape[3] // strip  # of a page

    def of_rows(which: int) -> pl.BlockSpec:
        def place(run: Any, token: Any, *_: Any) -> tuple[Any, ...]:
            return 0, 0, lax.div(token[run], strip) + which, 0

        return pl.BlockSpec((parts, heads, strip, lanes), place)

    def place(run: Any, _: Any, slot: Any, *__: Any) -> tuple[Any, ...]:
        number = lax.div(slot[run], strip)
        return lax.div(number, strips), 0, 0, lax.rem(number, strips), 0

    of_cache = pl.BlockSpec((1, parts, heads, strip, lanes), place)
    stored: jax.Array = pl.pallas_call(
        _kernel,
        out_shape=jax.ShapeDtypeStruct(pages.shape, pages.dtype),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(runs),
            grid=(jnp.maximum(count, 1),),
            in_specs=[of_rows(0), of_rows(1), of_cache],
            out_specs=of_cache,
        ),
        input_output_aliases={len(runs) + 2: 0},
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("arbitrary",), vmem_limit_bytes=VMEM_BYTES
        ),
        interpret=interpret,
        name="store_kv",
    )(*runs, rows, rows, pages)
    return stored


def _kernel(
    token: Any, slot: Any, length: Any, rows: Any, more_rows: Any, old: Any, new: Any
) -> None:
    """Put a run's rows into its strip."""
    run = pl.program_id(0)
    _, parts, heads, strip, _ = new.shape
    offset = lax.rem(slot[run], strip)
    # Two strips of the rows, turned, have the run where it belongs.
    turn = lax.rem(offset - lax.rem(token[run], strip) + 2 * strip, 2 * strip)
    row = lax.broadcasted_iota(jnp.int32, (strip, 1), 0)
    ours = (row >= offset) & (row < offset + length[run])
    for part, head in itertools.product(range(parts), range(heads)):
        both = jnp.concatenate([rows[part, head], more_rows[part, head]]).astype(jnp.float32)
        turned = pltpu.roll(both, turn, 0)[:strip]
        kept = old[0, part, head].astype(jnp.float32)
        new[0, part, head] = jnp.where(ours, turned, kept).astype(new.dtype)
