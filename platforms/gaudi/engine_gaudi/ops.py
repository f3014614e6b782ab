"""The operations that the bridge has fused, under the names and signatures of the core's table.

Shape legend: T tokens, W width, H query heads, K key/value heads, D head dim, R rotated part of D,
E experts, F width of one, A experts a token.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from engine.platform import OpTable
from engine_gaudi import fp8
from engine_gaudi.kernels import Kernels

SOURCE = "gaudi"
PRIORITY = 10
DTYPES = ("bfloat16", "float32")


def register(table: OpTable, kernels: Kernels, generation: Callable[[], str]) -> None:
    """Add them to a table that the core has filled.

    Args:
        generation: the device's, as the bridge names it; asked where weights in fp8 are wanted.
    """

    def refuses(*, dtype: str, **_: object) -> str | None:
        if kernels.without is not None:
            return kernels.without
        return None if dtype in DTYPES else f"dtype {dtype} is none of {', '.join(DTYPES)}"

    def refuses_quantized(*, quantization: str | None = None, **_: object) -> str | None:
        return None if quantization is None else f"it keeps weights as they are, not {quantization}"

    fused = _Fused(kernels)
    for function in (fused.rms_norm, fused.add_rms_norm, fused.rotary):
        add = table.register(function.__name__, source=SOURCE, priority=PRIORITY, unless=refuses)
        add(function)
    # Also where it is torch's own: the core's reference asks the device which experts were chosen.
    name = fused.mixture_of_experts.__name__
    add = table.register(name, source=SOURCE, priority=PRIORITY, unless=refuses_quantized)
    add(fused.mixture_of_experts)
    fp8.register(table, kernels, generation, source=SOURCE, priority=PRIORITY)


class _Fused:
    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return self._kernels.rms_norm(x, weight, eps)

    def add_rms_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        total = x + residual
        return self._kernels.rms_norm(total, weight, eps), total

    def rotary(
        self, q_THD: Tensor, k_TKD: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor]:
        """cos and sin are [T, R/2]: one half, which both halves of a head share."""
        cos_T1R = torch.cat((cos, cos), dim=-1).unsqueeze(1)
        sin_T1R = torch.cat((sin, sin), dim=-1).unsqueeze(1)
        return self._rotate(q_THD, cos_T1R, sin_T1R), self._rotate(k_TKD, cos_T1R, sin_T1R)

    def mixture_of_experts(
        self, gate_up_EGW: Tensor, down_EWF: Tensor
    ) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        gate_up, down = list(gate_up_EGW.unbind()), list(down_EWF.unbind())

        def apply(x_TW: Tensor, share_TA: Tensor, ids_TA: Tensor) -> Tensor:
            return self._kernels.experts(x_TW, share_TA, ids_TA, gate_up, down)

        return apply

    def _rotate(self, x_THD: Tensor, cos_T1R: Tensor, sin_T1R: Tensor) -> Tensor:
        rotated = cos_T1R.shape[-1]
        turned = self._kernels.rotary(x_THD[..., :rotated], cos_T1R, sin_T1R)
        if rotated == x_THD.shape[-1]:
            return turned
        return torch.cat((turned, x_THD[..., rotated:]), dim=-1)
