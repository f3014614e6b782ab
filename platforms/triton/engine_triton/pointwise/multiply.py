"""The activation of the gate, times the up projection (Shazeer, 2020).

Shape legend: T tokens, F features of the result.
"""

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine_triton.architecture import Architecture


def unless(**_: object) -> str | None:
    """Every layer is served."""
    return None


def operations(architecture: Architecture) -> dict[str, Callable[..., Any]]:
    return {
        "silu_and_multiply": Multiply(architecture, gelu=False),
        "gelu_tanh_and_multiply": Multiply(architecture, gelu=True),
    }


class Multiply:
    """Args: gelu: its tanh approximation (Hendrycks and Gimpel, 2016) instead of SiLU."""

    def __init__(self, architecture: Architecture, *, gelu: bool) -> None:
        self._launch = architecture.launch("multiply")
        self._gelu = gelu

    def __call__(self, gate_up: Tensor) -> Tensor:
        """[T, 2F] -> [T, F]; rows may lie apart."""
        if gate_up.stride(-1) != 1:
            gate_up = gate_up.contiguous()
        tokens, features = gate_up.shape[0], gate_up.shape[1] // 2
        out = torch.empty(tokens, features, dtype=gate_up.dtype, device=gate_up.device)
        if tokens:
            _multiply[(tokens, triton.cdiv(features, self._launch.blocks["BLOCK"]))](
                gate_up, out, gate_up.stride(0), features, GELU=self._gelu,
                **self._launch.blocks, **self._launch.options,
            )  # fmt: skip
        return out


@triton.jit
def _multiply(gate_up_ptr, out_ptr, stride, features, GELU: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = at < features
    gate = tl.load(gate_up_ptr + token * stride + at, mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + token * stride + features + at, mask, other=0.0)
    if GELU:
        # 0.5 * (1 + tanh(y)) is the logistic function of 2y.
        activated = gate * tl.sigmoid(1.5957691216057308 * (gate + 0.044715 * gate * gate * gate))
    else:
        activated = gate * tl.sigmoid(gate)
    tl.store(out_ptr + token * features + at, (activated * up.to(tl.float32)).to(up.dtype), mask)
