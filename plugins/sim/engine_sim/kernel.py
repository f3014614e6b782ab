"""The device's own kernel for paged attention: one operation, `torch.ops.sim.paged_attention`.

A vendor's is compiled; this one is torch's operations on the numbers as they lie in the host's
memory. It stores the step's keys and values, then attends, and goes by its tensors alone: no number
of a step is an argument, so one program serves every step of a shape.

Shape legend: T tokens of the step, N requests, H query heads, K key/value heads, G = H / K, D head
dim, B entries a block table, S tokens a block, M requests computed together, Q rows of each, L
tokens of the longest.
"""

from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.library import Library

from engine_sim.tensor import set_cost

#: Of a token that is padding: nothing is stored for it.
PAD_SLOT = -1

#: Rows of one prompt that are computed together: bounds the scores that are held at once.
ROWS = 256

_SCHEMA = (
    "paged_attention(Tensor q, Tensor k, Tensor v, Tensor(a!) cache, Tensor query_start,"
    " Tensor lengths, Tensor block_table, Tensor slots, float scale, int window, float soft_cap)"
    " -> Tensor"
)


@cache
def register() -> Library:
    """Once for the process; gives back what keeps the operation registered."""
    library = Library("sim", "DEF")  # type: ignore[no-untyped-call]
    library.define(_SCHEMA)  # type: ignore[no-untyped-call]
    library.impl("paged_attention", paged_attention, "CPU")  # type: ignore[no-untyped-call]
    set_cost(torch.ops.sim.paged_attention.default, _cost)
    return library


def paged_attention(
    q_THD: Tensor,
    k_TKD: Tensor,
    v_TKD: Tensor,
    cache_2SKD: Tensor,
    query_start: Tensor,
    lengths: Tensor,
    block_table_NB: Tensor,
    slots_T: Tensor,
    scale: float,
    window: int,
    soft_cap: float,
) -> Tensor:
    """[T, H, D] in the dtype of q. Rows that no request owns are 0.

    Args:
        cache_2SKD: [blocks, 2, S, K, D], keys then values; written.
        window: 0 is none; so with `soft_cap`.
    """
    size = cache_2SKD.shape[2]
    real_T = slots_T != PAD_SLOT
    places = slots_T[real_T]
    for half, x_TKD in enumerate((k_TKD, v_TKD)):
        cache_2SKD[places // size, half, places % size] = x_TKD[real_T].to(cache_2SKD.dtype)
    out_THD = torch.zeros_like(q_THD)
    starts, counts = query_start.tolist(), lengths.tolist()
    rows = [stop - start for start, stop in pairwise(starts)]
    singles = [i for i, count in enumerate(rows) if count == 1 and counts[i]]
    groups = [(singles, [starts[i] for i in singles], 1)] if singles else []
    for i, count in enumerate(rows):
        if count > 1:
            stop = starts[i + 1]
            groups += [([i], [at], min(ROWS, stop - at)) for at in range(starts[i], stop, ROWS)]
    for members, first, count in groups:
        rows_MQ = torch.tensor(first)[:, None] + torch.arange(count)
        # A request's rows are its last tokens.
        ends = torch.tensor([[counts[i] - starts[i + 1]] for i in members])
        out_THD[rows_MQ] = _attend(
            q_THD[rows_MQ],
            _context(cache_2SKD, block_table_NB[members], max(counts[i] for i in members)),
            rows_MQ + ends,
            lengths[members].long(),
            (scale, window, soft_cap),
        )
    return out_THD


def _context(cache_2SKD: Tensor, block_table_MB: Tensor, length: int) -> Tensor:
    """The first `length` tokens of each request: [2, M, L, K, D] float32."""
    table_MB = block_table_MB[:, : -(-length // cache_2SKD.shape[2])].long()
    return cache_2SKD[table_MB].transpose(1, 2).flatten(2, 3)[:, :, :length].float().transpose(0, 1)


def _attend(
    q_MQHD: Tensor,
    kv_2MLKD: Tensor,
    positions_MQ: Tensor,
    lengths_M: Tensor,
    how: tuple[float, int, float],
) -> Tensor:
    """Causal attention in float32; [M, Q, H, D] in the dtype of q."""
    scale, window, soft_cap = how
    k_MLKD, v_MLKD = kv_2MLKD
    places_L = torch.arange(k_MLKD.shape[1])
    q_MQKGD = q_MQHD.float().reshape(*q_MQHD.shape[:2], k_MLKD.shape[2], -1, q_MQHD.shape[3])
    scores = torch.einsum("mqkgd,mlkd->mqkgl", q_MQKGD, k_MLKD) * scale
    if soft_cap:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    back_MQL = positions_MQ[:, :, None] - places_L
    hidden_MQL = back_MQL < 0
    if window:
        hidden_MQL |= back_MQL >= window
    weights = scores.masked_fill(hidden_MQL[:, :, None, None], -torch.inf).softmax(-1)
    # What nobody wrote may be NaN, which a weight of 0 does not undo.
    unwritten_ML = places_L >= lengths_M[:, None]
    v_MLKD = v_MLKD.masked_fill(unwritten_ML[:, :, None, None], 0)
    out = torch.einsum("mqkgl,mlkd->mqkgd", weights, v_MLKD)
    return out.flatten(2, 3).to(q_MQHD.dtype)


def _cost(args: tuple[Any, ...], result: Tensor) -> tuple[float, float]:
    """Each key and value is read once, and those of the step are written."""
    q, k, v, cache, query_start, lengths = args[:6]
    rows_N, lengths_N = query_start.diff().clamp_min(0).double(), lengths.double()
    one = cache[0, :, 0].nbytes  # the keys and values of one token
    moved = q.nbytes + 2 * (k.nbytes + v.nbytes) + result.nbytes + one * float(lengths_N.sum())
    return moved, 4 * q.shape[1] * q.shape[2] * float((rows_N * lengths_N).sum())
