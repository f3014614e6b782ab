"""In the place of FlashAttention-3: its paged function's documented arguments and meaning, by torch
in float64, request by request. What the library's C++ checks of its arguments is checked here.

Legend: T rows, N requests, H query heads, K key/value heads, D head dim, P pages, S tokens a page,
L tokens of one request.
"""

from itertools import pairwise

import torch
from torch import Tensor


def flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    qv: Tensor | None = None,
    rotary_cos: Tensor | None = None,
    rotary_sin: Tensor | None = None,
    cache_seqlens: Tensor | None = None,
    cache_batch_idx: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    page_table: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k_new: Tensor | None = None,
    max_seqlen_q: int | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    num_splits: int = 0,
) -> Tensor:
    assert q.dtype in (torch.bfloat16, torch.float16)
    assert q.dtype == k_cache.dtype == v_cache.dtype
    assert q.stride(-1) == k_cache.stride(-1) == v_cache.stride(-1) == 1
    assert page_table.dtype == torch.int32
    assert page_table.stride(-1) == 1
    for whole in (cu_seqlens_q, cache_seqlens):
        assert whole.dtype == torch.int32
        assert whole.is_contiguous()
    requests, (pages, size, kv_heads, dim) = len(cu_seqlens_q) - 1, k_cache.shape
    assert v_cache.shape == k_cache.shape
    assert q.dim() == 3
    assert q.shape[2] == dim
    assert dim % 8 == 0
    assert dim <= 256
    assert len(page_table) == len(cache_seqlens) == requests
    assert int(page_table.max()) < pages
    starts = cu_seqlens_q.tolist()
    assert starts[-1] == len(q)
    assert max_seqlen_q == max(b - a for a, b in pairwise(starts))
    out = torch.empty_like(q)
    for i, length in enumerate(cache_seqlens.tolist()):
        used = page_table[i, : -(-length // size)].long()
        keys, values = (
            cache[used].reshape(-1, kv_heads, dim)[:length].double() for cache in (k_cache, v_cache)
        )
        rows = slice(starts[i], starts[i + 1])
        out[rows] = _attend(
            q[rows].double(), keys, values, softmax_scale, causal, window_size, softcap
        ).to(q.dtype)
    return out


def _attend(
    q_THD: Tensor,
    k_LKD: Tensor,
    v_LKD: Tensor,
    scale: float | None,
    causal: bool,
    window: tuple[int, int],
    cap: float,
) -> Tensor:
    rows, heads, dim = q_THD.shape
    length, group = len(k_LKD), heads // k_LKD.shape[1]
    k_LHD, v_LHD = (x.repeat_interleave(group, 1) for x in (k_LKD, v_LKD))
    scores_HTL = torch.einsum("thd,lhd->htl", q_THD, k_LHD) * (scale or dim**-0.5)
    if cap > 0:
        scores_HTL = cap * torch.tanh(scores_HTL / cap)
    left, right = window
    right = 0 if causal else right
    ahead = torch.arange(length) - (torch.arange(rows)[:, None] + length - rows)
    seen = torch.ones_like(ahead, dtype=torch.bool)
    seen &= (ahead <= right) | (right < 0)
    seen &= (ahead >= -left) | (left < 0)
    weights_HTL = scores_HTL.masked_fill(~seen, float("-inf")).softmax(-1)
    return torch.einsum("htl,lhd->thd", weights_HTL, v_LHD)
