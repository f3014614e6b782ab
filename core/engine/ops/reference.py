"""The reference operations. Signatures, shapes and dtypes are in the package's table."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root mean square layer normalization (Zhang and Sennrich, 2019)."""
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * scale * weight.float()).to(x.dtype)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    total = x + residual
    return rms_norm(total, weight, eps), total


def rotary_angles(positions: Tensor, frequencies: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    angles = positions.unsqueeze(-1).float() * frequencies
    return angles.cos() * scale, angles.sin() * scale


def rotary(q_THD: Tensor, k_TKD: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotary position embedding (Su et al., 2021), halves rotated as in GPT-NeoX."""
    return _rotate(q_THD, cos, sin), _rotate(k_TKD, cos, sin)


def _rotate(x_THD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = cos.shape[-1]
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)  # the same for every head
    first, second = x_THD[..., :half].float(), x_THD[..., half : 2 * half].float()
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return torch.cat((turned.to(x_THD.dtype), x_THD[..., 2 * half :]), dim=-1)


def silu_and_multiply(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return functional.silu(gate) * up


def gelu_tanh_and_multiply(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return functional.gelu(gate, approximate="tanh") * up


def embedding(ids: Tensor, weight: Tensor) -> Tensor:
    return functional.embedding(ids, weight)


def linear(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    def apply(x: Tensor) -> Tensor:
        return functional.linear(x, weight, bias)

    return apply


def tied_embedding(weight: Tensor) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """One matrix for the look-up of ids and for the logits (Press and Wolf, 2017)."""
    return lambda ids: embedding(ids, weight), linear(weight, None)


def mixture_of_experts(
    gate_up_EGW: Tensor, down_EWF: Tensor
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Each expert runs over the tokens that chose it (Shazeer et al., 2017)."""

    def apply(x_TW: Tensor, share_TA: Tensor, ids_TA: Tensor) -> Tensor:
        result = torch.zeros(x_TW.shape, dtype=torch.float32, device=x_TW.device)
        for expert in ids_TA.flatten().bincount().nonzero().flatten().tolist():
            tokens, place = torch.where(ids_TA == expert)
            inner = silu_and_multiply(functional.linear(x_TW[tokens], gate_up_EGW[expert]))
            outer = functional.linear(inner, down_EWF[expert]).float()
            result.index_add_(0, tokens, outer * share_TA[tokens, place, None].float())
        return result.to(x_TW.dtype)

    return apply
