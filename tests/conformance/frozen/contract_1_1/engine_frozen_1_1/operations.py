"""Operations of the Acme NPU, with linear layers of 8 bits.

T tokens, I input features, O output features, V vocabulary, W width, M rows, R rotated part.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from engine.platform import OpTable


class Int8Linear:
    """Weights in 8 bits, with a scale for each output; they are widened when they are used."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None = None) -> None:
        wide = weight_OI.float()
        self.scale_O = wide.abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
        self.weight_OI = (wide / self.scale_O).round().to(torch.int8)
        self.bias_O = bias_O

    @property
    def num_bytes(self) -> int:
        parts = [self.weight_OI, self.scale_O, *([] if self.bias_O is None else [self.bias_O])]
        return sum(part.numel() * part.element_size() for part in parts)

    def __call__(self, x_TI: Tensor) -> Tensor:
        return functional.linear(x_TI, self._wide().to(x_TI.dtype), self.bias_O)

    def rows(self, ids_T: Tensor, dtype: torch.dtype) -> Tensor:
        return (self.weight_OI[ids_T] * self.scale_O[ids_T]).to(dtype)

    def _wide(self) -> Tensor:
        return self.weight_OI * self.scale_O


def register(table: OpTable, source: str) -> None:
    def int8(*, quantization: str | None = None, **_: object) -> bool:
        return quantization == "int8"

    @table.register("rms_norm", source=source, priority=10)
    def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return functional.rms_norm(x.float(), weight.shape, weight.float(), eps).to(x.dtype)

    @table.register("rotary_angles", source=source, priority=10)
    def rotary_angles(
        positions_T: Tensor, frequencies_R: Tensor, scale: float
    ) -> tuple[Tensor, ...]:
        angles_TR = positions_T[:, None].float() * frequencies_R[None, :]
        return angles_TR.cos() * scale, angles_TR.sin() * scale

    @table.register("argmax", source=source, priority=10)
    def argmax(scores_MV: Tensor) -> tuple[Tensor, Tensor]:
        highest, ids = scores_MV.max(-1)
        return highest, ids

    @table.register("linear", source=source, priority=10, when=int8)
    def linear(weight_OI: Tensor, bias_O: Tensor | None) -> Int8Linear:
        return Int8Linear(weight_OI, bias_O)

    @table.register("tied_embedding", source=source, priority=10, when=int8)
    def tied_embedding(weight_VW: Tensor) -> tuple[Callable[[Tensor], Tensor], Int8Linear]:
        made, dtype = Int8Linear(weight_VW), weight_VW.dtype
        return (lambda ids_T: made.rows(ids_T, dtype)), made
