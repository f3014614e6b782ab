"""Better implementations of some of the core's operations: each is one kernel on the device.

Shapes and dtypes are in the table of `engine.ops`; what is not here is the core's own. T tokens, W
width, F inner width, H query heads, K key/value heads, D head dim, R rotated part of D.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.library import Library
from torch.nn import functional

from engine.platform import OpTable


def register(table: OpTable) -> None:
    """Fill the table with the device's own."""
    _library()
    own = torch.ops.sim
    table.register("rms_norm", source="sim", priority=10)(own.rms_norm.default)
    table.register("add_rms_norm", source="sim", priority=10)(own.add_rms_norm.default)
    table.register("rotary", source="sim", priority=10)(own.rotary.default)
    table.register("silu_and_multiply", source="sim", priority=10)(own.silu_and_multiply.default)


@cache
def _library() -> Library:
    library = Library("sim", "FRAGMENT")  # type: ignore[no-untyped-call]
    for schema, kernel in KERNELS.items():
        library.define(schema)  # type: ignore[no-untyped-call]
        library.impl(schema.partition("(")[0], kernel, "CPU")  # type: ignore[no-untyped-call]
    return library


def _rms_norm(x: Tensor, weight_W: Tensor, eps: float) -> Tensor:
    return functional.rms_norm(x.float(), weight_W.shape, weight_W.float(), eps).to(x.dtype)


def _add_rms_norm(
    x_TW: Tensor, residual_TW: Tensor, weight_W: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    total_TW = x_TW + residual_TW
    return _rms_norm(total_TW, weight_W, eps), total_TW


def _rotary(
    q_THD: Tensor, k_TKD: Tensor, cos_TR2: Tensor, sin_TR2: Tensor
) -> tuple[Tensor, Tensor]:
    """Halves of the rotated part are real and imaginary parts of numbers that are turned."""
    turn_T1R2 = torch.complex(cos_TR2, sin_TR2).unsqueeze(1)
    return _turn(q_THD, turn_T1R2), _turn(k_TKD, turn_T1R2)


def _turn(x_TXD: Tensor, turn_T1R2: Tensor) -> Tensor:
    half = turn_T1R2.shape[-1]
    real, imaginary, rest = torch.split(x_TXD, [half, half, x_TXD.shape[-1] - 2 * half], -1)
    turned = torch.complex(real.float(), imaginary.float()) * turn_T1R2
    return torch.cat((turned.real.to(x_TXD.dtype), turned.imag.to(x_TXD.dtype), rest), -1)


def _silu_and_multiply(gate_up_T2F: Tensor) -> Tensor:
    gate_TF, up_TF = gate_up_T2F.chunk(2, -1)
    return functional.silu(gate_TF) * up_TF


KERNELS: dict[str, Callable[..., Tensor | tuple[Tensor, Tensor]]] = {
    "rms_norm(Tensor x, Tensor weight, float eps) -> Tensor": _rms_norm,
    "add_rms_norm(Tensor x, Tensor residual, Tensor weight, float eps)"
    " -> (Tensor, Tensor)": _add_rms_norm,
    "rotary(Tensor q, Tensor k, Tensor cos, Tensor sin) -> (Tensor, Tensor)": _rotary,
    "silu_and_multiply(Tensor gate_up) -> Tensor": _silu_and_multiply,
}
