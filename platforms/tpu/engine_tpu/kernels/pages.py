"""How one layer's cache lies in memory, and how tokens become its rows.

Letters: T tokens, K key/value heads, D head dim, S tokens a page, L lanes.
"""

import jax
import jax.numpy as jnp

LANES = 128  # of a vector register
HALF = LANES // 2  # heads no larger have their key and value in one row


def parts(head_dim: int) -> int:
    """2 where keys and values are apart, 1 where they share a row."""
    return 1 if head_dim <= HALF else 2


def lanes(head_dim: int) -> int:
    """Of a row."""
    return -(-head_dim // LANES) * LANES


def page_shape(num_kv_heads: int, head_dim: int, page_size: int) -> tuple[int, int, int, int]:
    """(parts, K, S, L): what comes after the number of pages."""
    return parts(head_dim), num_kv_heads, page_size, lanes(head_dim)


def tile_rows(dtype: str | jnp.dtype) -> int:
    """Rows of a tile of memory: the least that a copy can move."""
    return 32 // jnp.dtype(dtype).itemsize


def rows_of(k_TKD: jax.Array, v_TKD: jax.Array) -> jax.Array:
    """[parts, K, T, L]: tokens as the cache holds them."""
    head_dim = k_TKD.shape[-1]
    if parts(head_dim) == 1:
        both = jnp.concatenate([_padded(k_TKD, HALF), _padded(v_TKD, HALF)], axis=-1)
        return both.transpose(1, 0, 2)[None]
    width = lanes(head_dim)
    both = jnp.stack([_padded(k_TKD, width), _padded(v_TKD, width)])
    return both.transpose(0, 2, 1, 3)


def queries_for(q: jax.Array) -> jax.Array:
    """[..., D] to [..., L], so that a product with a row is one with its key."""
    return _padded(q, lanes(q.shape[-1]))


def values_in(out: jax.Array, head_dim: int) -> jax.Array:
    """[..., L] to [..., D]: a weighted sum of rows to that of their values."""
    start = HALF if parts(head_dim) == 1 else 0
    return out[..., start : start + head_dim]


def _padded(x: jax.Array, width: int) -> jax.Array:
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, width - x.shape[-1])])
