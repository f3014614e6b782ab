"""The vendor's two attention kernels, each behind one operation.

On the host an operation is a torch reference that does what the kernel does, in the kernel's own
layouts: with it, all that lies around a kernel is tested without a device. On the device the same
call is the kernel (`nki_kernels.py`); which of the two is decided once, by `load`.

Shape legend: B heads of keys of all requests (requests times K), G query heads that share one, H
query heads of a request, K key/value heads, D head dim, N blocks of a table, S tokens a block,
L = N times S, Q rows of a prompt, E = L + Q, P blocks of the cache (heads apart).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.library import Library

NAMESPACE = "engine_neuron"

_TOKEN = (
    "attention_tkg(Tensor q, Tensor k_active, Tensor v_active, Tensor k_blocks, Tensor v_blocks,"
    " Tensor table, Tensor position) -> Tensor"
)
_CONTEXT = (
    "attention_cte(Tensor q, Tensor k, Tensor v, Tensor k_prior, Tensor v_prior,"
    " Tensor prior_used_len) -> Tensor"
)


@dataclass(frozen=True, slots=True)
class Kernels:
    token: Callable[..., Tensor]
    context: Callable[..., Tensor]


def load(device: str) -> Kernels:
    """The operations for tensors of `device`, as torch spells it."""
    if device.startswith("neuron"):
        from engine_neuron import nki_kernels

        return Kernels(nki_kernels.token, nki_kernels.context)
    _library()
    operations = torch.ops.engine_neuron
    return Kernels(operations.attention_tkg.default, operations.attention_cte.default)


def token_reference(
    q_BGD: Tensor,
    k_active_BD: Tensor,
    v_active_BD: Tensor,
    k_blocks_PSD: Tensor,
    v_blocks_PSD: Tensor,
    table_BN: Tensor,
    position_B: Tensor,
) -> Tensor:
    """Token generation: one token a request, [B, G, D].

    q is scaled already. Of the L places that the table names, the last is the new token's own
    wherever it is stored, and of the others those before `position` are seen.
    """
    k_BLD = k_blocks_PSD[table_BN.long()].flatten(1, 2).float()
    v_BLD = v_blocks_PSD[table_BN.long()].flatten(1, 2).float()
    k_BLD = torch.cat([k_BLD[:, :-1], k_active_BD[:, None].float()], 1)
    v_BLD = torch.cat([v_BLD[:, :-1], v_active_BD[:, None].float()], 1)
    places_L = torch.arange(k_BLD.shape[1], device=q_BGD.device)
    seen_BL = (places_L < position_B[:, None]) | (places_L == len(places_L) - 1)
    scores_BGL = torch.einsum("bgd,bld->bgl", q_BGD.float(), k_BLD)
    scores_BGL = scores_BGL.masked_fill(~seen_BL[:, None], -torch.inf)
    return torch.einsum("bgl,bld->bgd", scores_BGL.softmax(-1), v_BLD).to(q_BGD.dtype)


def context_reference(
    q_HQD: Tensor,
    k_KQD: Tensor,
    v_KQD: Tensor,
    k_prior_KLD: Tensor,
    v_prior_KLD: Tensor,
    prior_used_len_1: Tensor,
) -> Tensor:
    """Context encoding: rows of one prompt behind a part of it that is in the cache, [H, Q, D].

    q is scaled already. A row sees the first `prior_used_len` of the prior places, and of the new
    ones itself and those before it.
    """
    group = q_HQD.shape[0] // k_KQD.shape[0]
    k_KED = torch.cat([k_prior_KLD, k_KQD], 1).float()
    v_KED = torch.cat([v_prior_KLD, v_KQD], 1).float()
    rows_Q = torch.arange(q_HQD.shape[1], device=q_HQD.device)
    prior_L = torch.arange(k_prior_KLD.shape[1], device=q_HQD.device) < prior_used_len_1
    seen_QE = torch.cat(
        [prior_L.expand(len(rows_Q), -1), rows_Q[:, None] >= rows_Q[None, :]], dim=1
    )
    q_KGQD = q_HQD.float().view(k_KQD.shape[0], group, *q_HQD.shape[1:])
    scores = torch.einsum("kgqd,ked->kgqe", q_KGQD, k_KED).masked_fill(~seen_QE, -torch.inf)
    out_KGQD = torch.einsum("kgqe,ked->kgqd", scores.softmax(-1), v_KED)
    return out_KGQD.flatten(0, 1).to(q_HQD.dtype)


@cache
def _library() -> Library:
    """Once for the process; gives back what keeps the operations registered."""
    library = Library(NAMESPACE, "DEF")  # type: ignore[no-untyped-call]
    for schema, reference in ((_TOKEN, token_reference), (_CONTEXT, context_reference)):
        name = schema.partition("(")[0]
        library.define(schema)  # type: ignore[no-untyped-call]
        library.impl(name, reference, "CPU")  # type: ignore[no-untyped-call]
        torch.library.register_fake(f"{NAMESPACE}::{name}", _like_queries, lib=library)
    return library


def _like_queries(q: Tensor, *others: Tensor) -> Tensor:
    return torch.empty_like(q)
