"""Decode attention over one flat list of blocks, as Intel's own serving stack lays it out.

All blocks of all requests stand in one list, and a second one says whose each block is. Requests of
very different lengths then make one batch of equal matrices, for the matrix engine:

    request      0    0    0    1    2    2    -
    block       17    4    9    3   12    8    0        "-": unused, its group is N
    scores     q0 k  q0 k  q0 k  q1 k  q2 k  q2 k
    weights    against the greatest score of the request, over all of its blocks
    result     sums of a request's blocks: a product with the one-hot matrix of the groups

Shape legend: N requests, M blocks of the list, H query heads, K key/value heads, G = H / K, D head
dim, S tokens a block.
"""

import torch
from torch import Tensor

#: The score of what is not seen. Finite: where nothing is, differences must not be NaN.
UNSEEN = -1e30


def flat_attention(
    q_NHD: Tensor,
    k_MSKD: Tensor,
    v_MSKD: Tensor,
    groups_M: Tensor,
    seen_MS: Tensor,
    *,
    scale: float,
    soft_cap: float | None = None,
) -> Tensor:
    """One query a request, [N, H, D] in its dtype. The list's order does not matter.

    Args:
        groups_M: int64: the request that a block belongs to; N where it is unused.
        seen_MS: whether the request sees that token of the block. What it does not see may be NaN.
    """
    count, heads, size = q_NHD.shape
    k_MSKD = k_MSKD.masked_fill(~seen_MS[:, :, None, None], 0)
    v_MSKD = v_MSKD.masked_fill(~seen_MS[:, :, None, None], 0)
    spread_MHD = (q_NHD * scale).index_select(0, groups_M.clamp(max=count - 1))
    q_MKGD = spread_MHD.view(len(groups_M), k_MSKD.shape[2], -1, size)
    scores_MKGS = (q_MKGD @ k_MSKD.permute(0, 2, 3, 1)).float()
    if soft_cap is not None:
        scores_MKGS = soft_cap * torch.tanh(scores_MKGS / soft_cap)
    scores_MKGS = scores_MKGS.masked_fill(~seen_MS[:, None, None, :], UNSEEN)
    highest_MKG = _highest_of_group(scores_MKGS.amax(-1), groups_M, count)
    weights_MKGS = (scores_MKGS - highest_MKG[..., None]).exp()
    parts_MKGD = weights_MKGS.to(v_MSKD.dtype) @ v_MSKD.transpose(1, 2)
    rows_N = torch.arange(count, device=groups_M.device)
    onehot_NM = (rows_N[:, None] == groups_M).float()
    sums_NH = _sum_of_group(onehot_NM, weights_MKGS.sum(-1).flatten(1))
    out_NX = _sum_of_group(onehot_NM, parts_MKGD.float().flatten(1))
    out_NHD = out_NX.view(count, heads, size) / sums_NH[..., None]
    return out_NHD.to(q_NHD.dtype)


def _highest_of_group(highest_MKG: Tensor, groups_M: Tensor, count: int) -> Tensor:
    """For each block, the highest of all blocks of its group."""
    none = highest_MKG.new_full((count + 1, *highest_MKG.shape[1:]), UNSEEN)
    places_MKG = groups_M[:, None, None].expand_as(highest_MKG)
    return none.scatter_reduce(0, places_MKG, highest_MKG, "amax").index_select(0, groups_M)


def _sum_of_group(onehot_NM: Tensor, parts_MX: Tensor) -> Tensor:
    """[N, X]. A product would let a NaN spoil every request, for zero times NaN is NaN: so parts
    that are not finite are left out, and given to their own request afterwards."""
    sound_M1 = parts_MX.isfinite().all(1, keepdim=True)
    sums_NX = onehot_NM @ parts_MX.masked_fill(~sound_M1, 0)
    spoilt_N1 = onehot_NM @ (~sound_M1).float() > 0
    return sums_NX.masked_fill(spoilt_N1, float("nan"))
