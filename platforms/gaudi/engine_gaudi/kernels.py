"""What Intel's bridge has fused: one thin function each, beside one of torch alone.

They are chosen once, when the platform is made. What is here was written after the bridge's
documentation and sources; it was not run on hardware.

Shape legend: N requests, Q query rows of each, L keys of each, H query heads, K key/value heads,
D head dim, T tokens, W width, R rotated part of D, E experts, A experts a token, F width of one,
I input features, O output features.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from engine_gaudi import bridge

#: Head sizes that the fused attention is used for; others are left to torch.
FUSED_HEAD_DIMS = (64, 128, 256)
#: The bridge's name for e4m3 on every generation, whatever its range.
FP8 = torch.float8_e4m3fn


@dataclass(frozen=True, slots=True)
class Kernels:
    """`without`: why these are torch's own, or None where they are the bridge's."""

    #: (q[N, H, Q, D], k[N, K, L, D], v[N, K, L, D], mask[N, 1, Q, L] to add, scale) -> like q
    attention: Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]
    #: (x[..., W], weight[W], eps) -> like x
    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    #: (x[T, H, R], cos[T, 1, R], sin[T, 1, R]) -> like x; cos and sin float32, each half twice
    rotary: Callable[[Tensor, Tensor, Tensor], Tensor]
    #: (x[T, W], share[T, A], ids[T, A], gate_up of E [2F, W], down of E [W, F]) -> like x
    experts: Callable[[Tensor, Tensor, Tensor, list[Tensor], list[Tensor]], Tensor]
    #: (x, the format's largest number) -> like x, in fp8: what is larger becomes that number, and
    #: what is NaN stays NaN
    to_fp8: Callable[[Tensor, float], Tensor]
    #: (fp8 of any shape, dtype) -> that dtype
    from_fp8: Callable[[Tensor, torch.dtype], Tensor]
    #: (x[T, I] fp8, its scales[T, 1] float32, weight[O, I] fp8, its scales[O] float32,
    #: bias[O] or None, dtype) -> [T, O] in that dtype
    fp8_product: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None, torch.dtype], Tensor]
    without: str | None = None


def choose() -> Kernels:
    """The bridge's where it is installed; its modules are imported now, not in a step."""
    if bridge.find() is None:
        why = f"Intel's bridge ({bridge.PACKAGE}) is not installed"
        return Kernels(
            torch_attention,
            torch_rms_norm,
            torch_rotary,
            torch_experts,
            torch_to_fp8,
            torch_from_fp8,
            torch_fp8_product,
            why,
        )
    hpex = f"{bridge.PACKAGE}.torch.hpex"
    return Kernels(
        fused_attention(import_module(f"{hpex}.kernels").FusedSDPA),
        fused_rms_norm(import_module(f"{hpex}.normalization").FusedRMSNorm),
        fused_rotary(import_module(f"{hpex}.kernels").apply_rotary_pos_emb),
        fused_experts,
        fused_to_fp8,
        fused_from_fp8,
        fused_fp8_product,
    )


# The bridge's


def fused_attention(kernel: Any) -> Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]:
    def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
        dropout, is_causal, recompute, lengths = 0.0, False, True, None
        out: Tensor = kernel.apply(
            q, k, v, mask, dropout, is_causal, scale, "None", recompute, lengths, "right"
        )
        return out

    return attention


def fused_rms_norm(kernel: Any) -> Callable[[Tensor, Tensor, float], Tensor]:
    def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
        rows = x.reshape(1, -1, x.shape[-1])  # the kernel takes three dimensions
        out: Tensor = kernel.apply(rows, weight, eps)
        return out.view(x.shape)

    return rms_norm


def fused_rotary(kernel: Any) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def rotary(x_THR: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        out: Tensor = kernel(x_THR, cos, sin)  # halves rotated, in float32 as cos and sin are
        return out.to(x_THR.dtype)

    return rotary


def fused_experts(
    x: Tensor, share: Tensor, ids: Tensor, gate_up: list[Tensor], down: list[Tensor]
) -> Tensor:
    out: Tensor = torch.ops.hpu.mixture_of_experts(
        hidden_states=x,
        expert_routing_table=ids,
        router_weights=share.to(x.dtype),
        w12=gate_up,
        w3=down,
        permuted_weights=True,
        activation="silu",
        experts_min=0,
        experts_max=len(down) - 1,
    )
    return out


def fused_to_fp8(x: Tensor, largest: float) -> Tensor:
    bounded = x.clamp(-largest, largest)  # what the kernel would do beyond is not documented
    stochastic, is_amax = False, False
    out: Tensor = torch.ops.hpu.cast_to_fp8_v2(bounded, None, stochastic, is_amax, FP8)[0]
    return out


def fused_from_fp8(x: Tensor, dtype: torch.dtype) -> Tensor:
    out: Tensor = torch.ops.hpu.cast_from_fp8(x, None, dtype)
    return out


def fused_fp8_product(
    x: Tensor,
    x_scales: Tensor,
    weight: Tensor,
    weight_scales: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    out: Tensor = torch.ops.hpu.fp8_gemm_v2(
        A=x,
        trans_A=False,
        B=weight,
        trans_B=True,
        D=None,
        out_dtype=dtype,
        A_scale_inv=x_scales,
        B_scale_inv=weight_scales,
        bias=bias,
        accumulate=False,
    )
    return out


# torch's


def torch_attention(
    q_NHQD: Tensor,
    k_NKLD: Tensor,
    v_NKLD: Tensor,
    mask: Tensor,
    scale: float,
    soft_cap: float | None = None,
) -> Tensor:
    count, _, queries, size = q_NHQD.shape
    q_NKGQD = q_NHQD.float().reshape(count, k_NKLD.shape[1], -1, queries, size)
    scores = (q_NKGQD @ k_NKLD.float().unsqueeze(2).mT) * scale
    if soft_cap is not None:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    weights = (scores + mask.float().unsqueeze(2)).softmax(-1)
    out_NKGQD = weights @ v_NKLD.float().unsqueeze(2)
    return out_NKGQD.flatten(1, 2).to(q_NHQD.dtype)


def torch_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return functional.rms_norm(x, weight.shape, weight, eps)


def torch_rotary(x_THR: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x_THR.float().chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return (x_THR.float() * cos + turned * sin).to(x_THR.dtype)


def torch_experts(
    x_TW: Tensor, share_TA: Tensor, ids_TA: Tensor, gate_up: list[Tensor], down: list[Tensor]
) -> Tensor:
    """Every expert over every token: what a graph of fixed shapes can hold."""
    result = torch.zeros(x_TW.shape, dtype=torch.float32, device=x_TW.device)
    for expert, (up, back) in enumerate(zip(gate_up, down, strict=True)):
        share_T1 = (share_TA.float() * (ids_TA == expert)).sum(-1, keepdim=True)
        gate, inner = functional.linear(x_TW, up).chunk(2, dim=-1)
        result += functional.linear(functional.silu(gate) * inner, back).float() * share_T1
    return result.to(x_TW.dtype)


def torch_to_fp8(x: Tensor, largest: float) -> Tensor:
    return x.clamp(-largest, largest).to(FP8)


def torch_from_fp8(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype)


def torch_fp8_product(
    x_TI: Tensor,
    x_scales_T1: Tensor,
    weight_OI: Tensor,
    weight_scales_O: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    y_TO = (x_TI.float() @ weight_OI.float().T) * x_scales_T1 * weight_scales_O
    return (y_TO if bias is None else y_TO + bias.float()).to(dtype)
