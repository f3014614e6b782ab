"""Causal attention of a flat, ragged batch over a paged cache.

Rows of requests that compute one token take one way, all others another. Both are the same kernel:
a decode row has a block of queries to itself, so that nothing is computed for its neighbours, and
the rows of a prompt are computed in blocks of many. Where a step may have both, it is two kernels,
each of which walks only what is its own.

Letters: T tokens, N requests, H query heads, K key/value heads, D head dim, B entries of a block
table, Q blocks of queries, R rows of a block for one key/value head, L lanes.
"""

from typing import Any

import jax
import jax.numpy as jnp

from engine.errors import UnsupportedError
from engine_tpu.kernels.paged import Scores, paged_attention
from engine_tpu.kernels.pages import page_shape, queries_for, tile_rows, values_in
from engine_tpu.kernels.tiling import choose
from engine_tpu.kernels.worklist import work_list

DTYPES = ("bfloat16", "float32")
PAGE_SIZES = (8, 16, 32, 64, 128, 256)


def unsupported(
    *, num_heads: int, num_kv_heads: int, head_dim: int, page_size: int, dtype: str
) -> str | None:
    """Why the kernels cannot serve a layer, or None."""
    if dtype not in DTYPES:
        return f"the kernels compute in {' or '.join(DTYPES)}, not in {dtype}"
    sizes = [size for size in PAGE_SIZES if size >= tile_rows(dtype)]
    if page_size not in sizes:
        return f"a block of {dtype} has one of {sizes} tokens, not {page_size}"
    if num_heads % num_kv_heads:
        return f"{num_heads} query heads do not share out over {num_kv_heads} key/value heads"
    if head_dim > 256:
        return f"heads have at most 256 dimensions, not {head_dim}"
    return None


def ragged_paged_attention(
    q_THD: jax.Array,
    pages: jax.Array,
    lengths_N: jax.Array,
    block_table_NB: jax.Array,
    query_start_N1: jax.Array,
    *,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    decode: bool = False,
    cores: int | None = None,
    interpret: Any = False,
) -> jax.Array:
    """[T, H, D] in the type of q. Rows that belong to no request are 0.

    Request i has rows query_start[i]:query_start[i+1], the last of its lengths[i] tokens, all of
    which are in `pages` already; these are as in the package's docstring.

    Args:
        window: a token sees itself and the window - 1 tokens before it.
        soft_cap: scores become soft_cap * tanh(scores / soft_cap).
        decode: T is N, and row i is the one row of request i. Saves the other kernel.
        cores: of one device, which share out the heads; None: as the mesh in force says.
        interpret: True, or Pallas's `InterpretParams`: computed on the host.

    Raises:
        UnsupportedError: the shapes need more memory than a core has, or are none of the kernel's.
    """
    _check(q_THD, pages, lengths_N, decode)
    table_NB = jnp.clip(block_table_NB.astype(jnp.int32), 0, len(pages) - 1)
    lengths_N, query_start_N1 = lengths_N.astype(jnp.int32), query_start_N1.astype(jnp.int32)
    step = (lengths_N, query_start_N1, table_NB)
    scores = Scores(scale=scale, window=window, soft_cap=soft_cap)
    settings = {"scores": scores, "cores": cores or _cores(), "interpret": interpret}
    known_N, single_N = lengths_N > 0, jnp.diff(query_start_N1) == 1
    single_N = jnp.cumprod(single_N) == 1  # before the first prompt: request i has row i
    q_THL = queries_for(q_THD)
    rows = min(len(q_THL), len(lengths_N))  # of which any may be such a request's
    out_THL = _attend(q_THL[:rows], pages, step, known_N & single_N, decode=True, **settings)
    if not decode:
        others_THL = _attend(q_THL, pages, step, known_N & ~single_N, decode=False, **settings)
        out_THL = others_THL.at[:rows].add(out_THL)
    return values_in(out_THL, q_THD.shape[-1])


def _check(q_THD: jax.Array, pages: jax.Array, lengths_N: jax.Array, decode: bool) -> None:
    tokens, num_heads, head_dim = q_THD.shape
    num_kv_heads, page_size = pages.shape[2:4]
    right = page_shape(num_kv_heads, head_dim, page_size)
    why = unsupported(
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        page_size=page_size,
        dtype=str(q_THD.dtype),
    )
    if why is None and (pages.shape[1:] != right or pages.dtype != q_THD.dtype):
        why = (
            f"pages are {pages.dtype}{pages.shape[1:]} and for queries"
            f" {q_THD.dtype}{q_THD.shape} they would be {q_THD.dtype}{right}"
        )
    if why is None and decode and tokens != len(lengths_N):
        why = f"a decode step has one row a request, not {tokens} for {len(lengths_N)}"
    if why:
        raise UnsupportedError(why)


def _cores() -> int:
    """Of a device of the mesh in force: 2 on chips whose cores appear as one device."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return 1 if device is None else device.num_cores or 1


def _attend(
    q_THL: jax.Array,
    pages: jax.Array,
    step: tuple[jax.Array, jax.Array, jax.Array],
    chosen_N: jax.Array,
    *,
    decode: bool,
    scores: Scores,
    cores: int,
    interpret: Any,
) -> jax.Array:
    """[T, H, L]: the chosen requests' rows, all among these, and 0 elsewhere. `step`: lengths,
    first rows and block tables. `decode`: each has one row."""
    (lengths_N, query_start_N1, table_NB), (tokens, num_heads, _) = step, q_THL.shape
    tiling = choose(
        tokens=tokens,
        num_heads=num_heads,
        page=pages.shape[1:],
        itemsize=pages.dtype.itemsize,
        requests=tokens if decode else len(lengths_N),
        table_pages=table_NB.shape[1],
        window=scores.window,
        decode=decode,
        cores=cores,
    )
    out_QKRL = paged_attention(
        _to_blocks(q_THL, pages.shape[2], tiling.block_queries),
        pages,
        work_list(*step, chosen_N, tiling=tiling, page_size=pages.shape[3], window=scores.window),
        scores=scores,
        tiling=tiling,
        interpret=interpret,
    )
    out_THL = _from_blocks(out_QKRL, tokens, num_heads, tiling.block_queries)
    row_T1 = jnp.arange(tokens)[:, None]
    ours_TN = chosen_N & (row_T1 >= query_start_N1[:-1]) & (row_T1 < query_start_N1[1:])
    return jnp.where(ours_TN.any(1)[:, None, None], out_THL, jnp.zeros_like(out_THL))


def _to_blocks(q_THL: jax.Array, num_kv_heads: int, queries: int) -> jax.Array:
    """[Q, K, R, L], R being [heads, queries] and a multiple of 8."""
    tokens, num_heads, lanes = q_THL.shape
    per_head = num_heads // num_kv_heads
    q = jnp.pad(q_THL, ((0, -tokens % queries), (0, 0), (0, 0)))
    q = q.reshape(-1, queries, num_kv_heads, per_head, lanes).transpose(0, 2, 3, 1, 4)
    q = q.reshape(-1, num_kv_heads, per_head * queries, lanes)
    return jnp.pad(q, ((0, 0), (0, 0), (0, -q.shape[2] % 8), (0, 0)))


def _from_blocks(out_QKRL: jax.Array, tokens: int, num_heads: int, queries: int) -> jax.Array:
    """[T, H, L]"""
    _, num_kv_heads, _, lanes = out_QKRL.shape
    per_head = num_heads // num_kv_heads
    out = out_QKRL[:, :, : per_head * queries]
    out = out.reshape(-1, num_kv_heads, per_head, queries, lanes).transpose(0, 3, 1, 2, 4)
    return out.reshape(-1, num_heads, lanes)[:tokens]
