"""Writes the step's keys and values to their places in the cache.

A row is less than a tile of memory, and a tile is the least that a copy can move. So the rows of a
*run*, consecutive tokens that go to one strip of a page, are written together: the strip is
fetched, the run's rows are put into it, and it is put back. One that is overwritten whole is not
fetched.

    tokens       | t0 t1 t2 t3 t4 | t5 t6 | t7 |                  of three requests
    strips       | .. .. t0 t1 | t2 t3 t4 .. | t5 t6 .. .. | .. .. .. t7 |      four runs

Letters: T tokens, K key/value heads, D head dim, S tokens a page, L lanes.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from engine.errors import UnsupportedError
from engine_tpu.kernels.pages import page_shape, rows_of, tile_rows

CHUNK_BYTES = 2 * 2**20  # of new rows that are in a core's memory at once, at most
STRIPS = 8  # that are on their way at once: half of them from the cache, half back to it
VMEM_BYTES = 32 * 2**20


class Runs(NamedTuple):
    """Of at most T runs, int32."""

    token: jax.Array  # [T+1]: the run's first token
    length: jax.Array  # [T]
    slot: jax.Array  # [T]: of its first token
    chunk_run: jax.Array  # [chunks+1]: the first run of each chunk of tokens


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
    page_size = pages.shape[3]
    right = page_shape(num_kv_heads, head_dim, page_size)
    if pages.shape[1:] != right or k_TKD.shape != v_TKD.shape or pages.dtype != k_TKD.dtype:
        raise UnsupportedError(
            f"keys {k_TKD.dtype}{k_TKD.shape} and values {v_TKD.dtype}{v_TKD.shape} do not go to"
            f" pages {pages.dtype}{pages.shape[1:]}; they would be {k_TKD.dtype}{right}"
        )
    rows = rows_of(k_TKD, v_TKD)
    row_bytes = rows.nbytes // tokens
    long_runs = tokens > 512 and row_bytes <= CHUNK_BYTES // 128
    strip = min(page_size, 64 if long_runs else tile_rows(pages.dtype))
    # Two strips at least: as many as a run may begin in and end in.
    chunk = strip * max(2, min(CHUNK_BYTES // (row_bytes * strip), -(-tokens // strip)))
    num_chunks = -(-tokens // chunk)
    rows = jnp.pad(rows, ((0, 0), (0, 0), (0, num_chunks * chunk - tokens), (0, 0)))
    runs = _runs(slots_T, pages.shape[0] * page_size, strip, chunk, num_chunks)
    return _write(pages, rows, runs, strip, chunk, num_chunks, interpret)


def _runs(slots_T: jax.Array, num_slots: int, strip: int, chunk: int, num_chunks: int) -> Runs:
    """A run ends where the slots jump, and with its strip and its chunk of tokens."""
    tokens = slots_T.shape[0]
    token_T = jnp.arange(tokens, dtype=jnp.int32)
    valid_T = (slots_T >= 0) & (slots_T < num_slots)
    slots_T = jnp.where(valid_T, slots_T, -2).astype(jnp.int32)
    before_T = jnp.concatenate([jnp.full(1, -2, jnp.int32), slots_T[:-1]])
    starts_T = (slots_T != before_T + 1) | (slots_T % strip == 0) | (token_T % chunk == 0)
    ends_T = jnp.concatenate([starts_T[1:] | ~valid_T[1:], jnp.ones(1, bool)])
    starts_T, ends_T = starts_T & valid_T, ends_T & valid_T
    first_T = jnp.sort(jnp.where(starts_T, token_T, tokens))
    last_T = jnp.sort(jnp.where(ends_T, token_T, tokens))
    bounds = jnp.arange(num_chunks + 1, dtype=jnp.int32) * chunk
    return Runs(
        token=first_T,
        length=last_T - first_T + 1,
        slot=slots_T[jnp.minimum(first_T, tokens - 1)],
        chunk_run=(first_T[None, :] < jnp.minimum(bounds, tokens)[:, None]).sum(1, dtype=jnp.int32),
    )


def _write(
    pages: jax.Array,
    rows: jax.Array,
    runs: Runs,
    strip: int,
    chunk: int,
    num_chunks: int,
    interpret: Any,
) -> jax.Array:
    parts, heads, _, lanes = rows.shape
    stored: jax.Array = pl.pallas_call(
        functools.partial(_kernel, chunk=chunk),
        out_shape=jax.ShapeDtypeStruct(pages.shape, pages.dtype),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=4,
            grid=(num_chunks,),
            in_specs=[
                pl.BlockSpec((parts, heads, chunk, lanes), lambda number, *_: (0, 0, number, 0)),
                pl.BlockSpec(memory_space=pl.ANY),
            ],
            out_specs=pl.BlockSpec(memory_space=pl.ANY),
            scratch_shapes=[
                pltpu.VMEM((STRIPS, parts, heads, strip, lanes), pages.dtype),
                pltpu.SemaphoreType.DMA((STRIPS,)),
                pltpu.SemaphoreType.DMA((STRIPS,)),
            ],
        ),
        input_output_aliases={5: 0},
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("arbitrary",), vmem_limit_bytes=VMEM_BYTES
        ),
        interpret=interpret,
        name="store_kv",
    )(*runs, rows, pages)
    return stored


def _kernel(
    run_token: Any,
    run_length: Any,
    run_slot: Any,
    chunk_run: Any,
    rows_ref: Any,
    _: Any,
    pages: Any,
    strips: Any,
    arrived: Any,
    gone: Any,
    *,
    chunk: int,
) -> None:
    number = pl.program_id(0)
    first, stop = chunk_run[number], chunk_run[number + 1]
    _, parts, heads, strip, _ = strips.shape
    page_size = pages.shape[3]

    def place(run: Any) -> Any:
        """The run's strip in the cache."""
        slot = run_slot[run]
        page, offset = lax.div(slot, page_size), lax.rem(slot, page_size)
        start = pl.multiple_of(lax.div(offset, strip) * strip, strip)
        return pages.at[page, :, :, pl.ds(start, strip)]

    def fetch(run: Any) -> Any:
        here = lax.rem(run, STRIPS)
        return pltpu.make_async_copy(place(run), strips.at[here], arrived.at[here])

    def put_back(run: Any) -> Any:
        here = lax.rem(run, STRIPS)
        return pltpu.make_async_copy(strips.at[here], place(run), gone.at[here])

    def begin(run: Any) -> None:
        @pl.when(run < stop)
        def _() -> None:
            pl.when(run_length[run] < strip)(lambda: fetch(run).start())

    def insert(run: Any) -> None:
        """Put the run's rows into its strip."""
        start, offset = run_token[run] - number * chunk, lax.rem(run_slot[run], strip)
        # Two strips of the new rows hold the run; turned, they have it where it belongs.
        aligned = pl.multiple_of(
            jnp.minimum(lax.div(start, strip) * strip, chunk - 2 * strip), strip
        )
        turn = lax.rem(offset - (start - aligned) + 2 * strip, 2 * strip)
        row = lax.broadcasted_iota(jnp.int32, (strip, 1), 0)
        ours = (row >= offset) & (row < offset + run_length[run])
        here = lax.rem(run, STRIPS)
        for part in range(parts):
            for head in range(heads):
                new = rows_ref[part, head, pl.ds(aligned, 2 * strip)].astype(jnp.float32)
                new = pltpu.roll(new, turn, 0)[:strip]
                old = strips[here, part, head].astype(jnp.float32)
                strips[here, part, head] = jnp.where(ours, new, old).astype(strips.dtype)

    def one(run: Any, _: None) -> None:
        pl.when(run - first >= STRIPS // 2)(lambda: put_back(run - STRIPS // 2).wait())
        begin(run + STRIPS // 2)
        pl.when(run_length[run] < strip)(lambda: fetch(run).wait())
        insert(run)
        put_back(run).start()

    lax.fori_loop(first, jnp.minimum(first + STRIPS // 2, stop), lambda run, _: begin(run), None)
    lax.fori_loop(first, stop, one, None)
    last = jnp.maximum(first, stop - STRIPS // 2)
    lax.fori_loop(last, stop, lambda run, _: put_back(run).wait(), None)
