"""What the kernels compute, in jax's own operations: for simulated chips, where the kernels' own
interpreter is slow, and the other side of their comparison.

Letters: T tokens, N requests, H query heads, K key/value heads, D head dim, B entries of a block
table, S tokens a page, L lanes, M pairs. Pages are `[num_pages, parts, K, S, L]`, see `kernels`.
"""

import jax
import jax.numpy as jnp

from engine_tpu.kernels.pages import queries_for, rows_of, values_in

TOGETHER = 16  # rows whose keys are gathered at a time


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
) -> jax.Array:
    """[T, H, D] in the type of q. Softmax in float32. `decode` changes nothing here."""
    _, num_heads, head_dim = q_THD.shape
    num_kv_heads = pages.shape[2]
    rows_T = jnp.arange(len(q_THD))
    last = len(lengths_N) - 1
    owner_T = jnp.searchsorted(query_start_N1[1:], rows_T, side="right").clip(0, last)
    position_T = lengths_N[owner_T] - query_start_N1[owner_T + 1] + rows_T

    def row(one: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        q_HD, table_B, position = one
        read = pages[table_B].transpose(1, 2, 0, 3, 4)  # [parts, K, B, S, L]
        k_KCL, v_KCL = (
            part.reshape(num_kv_heads, -1, part.shape[-1]).astype(jnp.float32)
            for part in (read[0], read[-1])
        )
        back_C = position - jnp.arange(k_KCL.shape[1])
        seen_C = back_C >= 0 if window is None else (back_C >= 0) & (back_C < window)
        q_KGL = queries_for(q_HD.astype(jnp.float32)).reshape(num_kv_heads, -1, k_KCL.shape[2])
        scores_KGC = jnp.einsum("kgl,kcl->kgc", q_KGL, k_KCL, precision="highest") * scale
        if soft_cap is not None:
            scores_KGC = soft_cap * jnp.tanh(scores_KGC / soft_cap)
        weights_KGC = jax.nn.softmax(jnp.where(seen_C, scores_KGC, -1e30), axis=-1)
        # What nobody wrote may be NaN, which a weight of 0 does not undo.
        v_KCL = jnp.where(seen_C[:, None], v_KCL, 0)
        out_KGL = jnp.einsum("kgc,kcl->kgl", weights_KGC, v_KCL, precision="highest")
        return values_in(out_KGL, head_dim).reshape(num_heads, head_dim).astype(q_HD.dtype)

    arguments = (q_THD, block_table_NB[owner_T], position_T)
    out_THD: jax.Array = jax.lax.map(row, arguments, batch_size=min(TOGETHER, len(rows_T)))
    return out_THD


def store_kv(pages: jax.Array, k_TKD: jax.Array, v_TKD: jax.Array, slots_T: jax.Array) -> jax.Array:
    """Pages with the tokens at their slots; a slot below 0 is none."""
    count, parts, num_kv_heads, size, _ = pages.shape
    block_T = jnp.where(slots_T < 0, count, slots_T // size)
    part, head = jnp.arange(parts)[:, None, None], jnp.arange(num_kv_heads)[None, :, None]
    rows = rows_of(k_TKD, v_TKD).astype(pages.dtype)
    return pages.at[block_T, part, head, slots_T % size].set(rows, mode="drop")


def copy_pages(pages: jax.Array, sources_M: jax.Array, targets_M: jax.Array) -> jax.Array:
    """Pages with the sources' contents at the targets, which are distinct and no sources; where
    one of the two is below 0, nothing."""
    targets_M = jnp.where((sources_M < 0) | (targets_M < 0), len(pages), targets_M)
    return pages.at[targets_M].set(pages[sources_M.clip(0)], mode="drop")
