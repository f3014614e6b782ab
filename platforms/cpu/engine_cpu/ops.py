"""Operations that torch has faster than the core's reference writes them.

Shape legend: T tokens, W width, H query heads, K key/value heads, D head dim, R rotated part of D,
F width of the result. Signatures and dtypes are those of the core's table.
"""

import torch
from torch import Tensor
from torch.nn import functional

from engine.platform import OpTable

SOURCE = "cpu"
PRIORITY = 10
#: From here on memory traffic counts, and not the number of calls.
MANY_NUMBERS = 2**17


def register(table: OpTable) -> None:
    """Add them to a table that the core has filled."""
    for function in (
        rms_norm,
        add_rms_norm,
        rotary,
        silu_and_multiply,
        gelu_tanh_and_multiply,
    ):
        table.register(function.__name__, source=SOURCE, priority=PRIORITY)(function)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    if x.numel() < MANY_NUMBERS:
        return functional.rms_norm(x, weight.shape, weight, eps)
    wide = x.float()
    norm: Tensor = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    scale = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return (wide * scale).mul_(weight).to(x.dtype)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    total = x + residual
    return rms_norm(total, weight, eps), total


def rotary(q_THD: Tensor, k_TKD: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Both at once: with few tokens the number of calls is what takes time."""
    x_TND = torch.cat((q_THD, k_TKD), dim=1)
    half = cos.shape[-1]
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    first, second = x_TND[..., :half], x_TND[..., half : 2 * half]
    turned = torch.empty(x_TND.shape, dtype=torch.float32)
    torch.mul(first, cos, out=turned[..., :half]).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=turned[..., half : 2 * half]).addcmul_(first, sin)
    turned[..., 2 * half :] = x_TND[..., 2 * half :]
    q_THD, k_TKD = turned.to(x_TND.dtype).split_with_sizes((q_THD.shape[1], k_TKD.shape[1]), dim=1)
    return q_THD, k_TKD


def silu_and_multiply(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return functional.silu(gate).mul_(up)


def gelu_tanh_and_multiply(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return functional.gelu(gate, approximate="tanh").mul_(up)
