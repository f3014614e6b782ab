"""Linear layers and mixtures of experts over weights in fp8 (e4m3), by the bridge's product.

Each row of weights and each token has a scale of its own, by which its largest magnitude becomes
the largest number of the format. That is not the same on all Gaudis: the second generation's e4m3
keeps the highest exponent for what is not finite, as IEEE 754 has it, the third's does not
(Micikevicius et al., 2022, FP8 formats for deep learning). Both have the same bits for the same
number, up to the smaller of the two; the second reads larger ones as NaN.

Shape legend: T tokens, I input features, O output features, V vocabulary, W width, E experts,
F width of one, A experts a token, N rows.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from engine.platform import OpTable
from engine_gaudi.kernels import Kernels

#: The largest number in e4m3, by the name that the bridge has for a device.
LARGEST = {"GAUDI2": 240.0, "GAUDI3": 448.0}
QUANTIZATION = "fp8"
DTYPES = ("bfloat16", "float32")
#: Weights that are rounded at a time.
SLICE = 2**26


def register(
    table: OpTable, kernels: Kernels, generation: Callable[[], str], *, source: str, priority: int
) -> None:
    """Add factories for weights in fp8 to a table that the core has filled.

    Args:
        generation: the device's, as the bridge names it; asked where fp8 is wanted.
    """

    def linear(weight: Tensor, bias: Tensor | None) -> Fp8Linear:
        return Fp8Linear(weight, bias, kernels, LARGEST[generation()])

    def tied_embedding(weight: Tensor) -> tuple[Callable[[Tensor], Tensor], Fp8Linear]:
        made = linear(weight, None)
        return made.look_up, made

    def mixture_of_experts(gate_up_EGW: Tensor, down_EWF: Tensor) -> Fp8Experts:
        return Fp8Experts(gate_up_EGW, down_EWF, kernels, LARGEST[generation()])

    def unserved(*, dtype: str, quantization: str | None = None, **_: object) -> str | None:
        if quantization != QUANTIZATION:
            return f"it rounds weights to fp8, and {quantization or 'no rounding'} is asked for"
        if dtype not in DTYPES:
            return f"dtype {dtype} is none of {', '.join(DTYPES)}"
        return lacking(generation())

    for factory in (linear, tied_embedding, mixture_of_experts):
        add = table.register(factory.__name__, source=source, priority=priority, unless=unserved)
        add(factory)


def lacking(generation: str) -> str | None:
    """Why a device of that name has no fp8, or None."""
    if generation in LARGEST:
        return None
    return f"the range of fp8 is known of {', '.join(LARGEST)}, and this device is {generation}"


class Fp8Linear:
    """
    Args:
        weight: [O, I], bfloat16 or float32.
        bias: [O], or None.
        largest: of the device's e4m3.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, kernels: Kernels, largest: float
    ) -> None:
        self._kernels = kernels
        self._largest = largest
        self._bias = bias
        self._dtype = weight.dtype
        rows = max(1, SLICE // weight.shape[1])
        parts = [_rounded(part, kernels, largest) for part in torch.split(weight, rows)]
        self._weight_OI = torch.cat([levels for levels, _ in parts])
        self._scales_O = torch.cat([scales for _, scales in parts]).flatten()
        self.num_bytes = self._weight_OI.nbytes + self._scales_O.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        """[..., I] -> [..., O]."""
        x_TI, scales_T1 = _rounded(x.reshape(-1, x.shape[-1]), self._kernels, self._largest)
        y_TO = self._kernels.fp8_product(
            x_TI, scales_T1, self._weight_OI, self._scales_O, self._bias, x.dtype
        )
        return y_TO.view(*x.shape[:-1], len(self._scales_O))

    def look_up(self, ids: Tensor) -> Tensor:
        """[T] int64 -> the weight's rows as they were rounded, [T, I]."""
        levels = self._kernels.from_fp8(self._weight_OI.index_select(0, ids), torch.float32)
        return (levels * self._scales_O.index_select(0, ids)[:, None]).to(self._dtype)


class Fp8Experts:
    """Every expert over every token, as a graph of fixed shapes has it; one after the other.

    Args:
        gate_up: [E, 2F, W].
        down: [E, W, F].
    """

    def __init__(
        self, gate_up_EGW: Tensor, down_EWF: Tensor, kernels: Kernels, largest: float
    ) -> None:
        self._gate_up = [Fp8Linear(one, None, kernels, largest) for one in gate_up_EGW.unbind()]
        self._down = [Fp8Linear(one, None, kernels, largest) for one in down_EWF.unbind()]
        self.num_bytes = sum(one.num_bytes for one in (*self._gate_up, *self._down))

    def __call__(self, x_TW: Tensor, share_TA: Tensor, ids_TA: Tensor) -> Tensor:
        result = torch.zeros(x_TW.shape, dtype=torch.float32, device=x_TW.device)
        for expert, (up, back) in enumerate(zip(self._gate_up, self._down, strict=True)):
            chosen_T1 = (share_TA.float() * (ids_TA == expert)).sum(-1, keepdim=True)
            gate, inner = up(x_TW).chunk(2, dim=-1)
            outer = back(functional.silu(gate) * inner).float() * chosen_T1
            # What is too large for the dtype becomes NaN by a share of 0.
            result = result + torch.where(chosen_T1 > 0, outer, 0)
        return result.to(x_TW.dtype)


def _rounded(x_NI: Tensor, kernels: Kernels, largest: float) -> tuple[Tensor, Tensor]:
    """Levels [N, I] in fp8, and what makes numbers of them again: scales [N, 1] in float32."""
    highest_N1 = x_NI.abs().amax(-1, keepdim=True).float()
    scales_N1 = torch.where(highest_N1 == 0, 1.0, highest_N1 / largest)
    return kernels.to_fp8(x_NI.float() / scales_N1, largest), scales_N1
