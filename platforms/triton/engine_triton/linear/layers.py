"""Linear layers: which kernel serves how many rows, decided by shapes alone.

Shape legend: M rows, O output features, K input features.
"""

import torch
import triton
from torch import Tensor
from torch.nn import functional

from engine_triton.architecture import Architecture
from engine_triton.linear import library
from engine_triton.linear.activations import Rounding
from engine_triton.linear.gemv import gemv
from engine_triton.linear.parts import Parts
from engine_triton.linear.product import ROWS, Product
from engine_triton.linear.weights import Weight, plain


class DenseLinear:
    """Weights as they are: few rows by the kernels here, many by the vendor's library.

    Args:
        weight: [O, K], bfloat16 or float16.
        bias: [O], or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, architecture: Architecture) -> None:
        self._weight, self._bias = plain(weight), bias
        outputs, inputs = weight.shape
        self._few = _rows_of_kernels(architecture, outputs, inputs)
        self._product = Product(self._weight, bias, architecture)
        self._launch = architecture.launch("gemv", outputs=outputs, inputs=inputs)
        blocks = self._launch.blocks
        self._parts = Parts.of(
            triton.cdiv(outputs, blocks["BLOCK_O"]),
            triton.cdiv(inputs, blocks["BLOCK_K"]),
            architecture.processors,
        )

    def __call__(self, x: Tensor) -> Tensor:
        """[..., K] -> [..., O]."""
        weight = self._weight
        x_MK = _as_rows(x)
        if len(x_MK) > self._few:
            return functional.linear(x, weight.levels, self._bias)
        if len(x_MK) == 1:
            out = gemv(x_MK, weight.levels, self._bias, self._launch, self._parts)
        else:
            out = self._product(x_MK, x.dtype)
        return out.view(*x.shape[:-1], weight.outputs)


class WeightOnlyLinear:
    """Rounded weights, which become floating point again in registers; activations stay whole.

    Args:
        weight: as `engine_triton.linear.rounding` makes it, or given.
        bias: [O], or None.
    """

    def __init__(self, weight: Weight, bias: Tensor | None, architecture: Architecture) -> None:
        self.weight = weight.as_stored(architecture.fp8)
        self.num_bytes = self.weight.num_bytes
        self._product = Product(self.weight, bias, architecture)

    def __call__(self, x: Tensor) -> Tensor:
        """[..., K] -> [..., O]."""
        return self._product(_as_rows(x), x.dtype).view(*x.shape[:-1], self.weight.outputs)

    def look_up(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """[N] int64 -> those rows of the weight, as they were rounded, [N, K]."""
        return self.weight.rows(ids, dtype)


class Fp8Linear:
    """fp8 weights. Many rows of activations are rounded to fp8 too, for the chip's matrix units.

    Few rows are not: reading the weights is what takes the time then, and a kernel that rounds
    would come on top of it.

    Args:
        weight: form "rows" or "blocks", e4m3 as the Open Compute Project defines it.
        bias: [O], or None.
    """

    def __init__(self, weight: Weight, bias: Tensor | None, architecture: Architecture) -> None:
        self._whole = WeightOnlyLinear(weight, bias, architecture)
        self._weight = self._whole.weight
        self.num_bytes = self._whole.num_bytes
        self.look_up = self._whole.look_up
        self._round: Rounding | None = None
        self._scaled_mm: library.ScaledMatmul | None = None
        if architecture.fp8_matrix:
            group = weight.group if weight.form == "blocks" else None
            self._round = Rounding(architecture, group)
            self._product = Product(self._weight, bias, architecture)
            self._scaled_mm = library.scaled_matmul(self._weight, bias, architecture)

    def __call__(self, x: Tensor) -> Tensor:
        """[..., K] -> [..., O]."""
        x_MK = _as_rows(x)
        if self._round is None or len(x_MK) <= ROWS[0]:
            return self._whole(x)
        scaled = self._round(x_MK)
        if self._scaled_mm is not None and x.dtype == library.RESULT:
            out = self._scaled_mm(scaled)
        else:
            out = self._product(scaled, x.dtype)
        return out.view(*x.shape[:-1], self._weight.outputs)


def _rows_of_kernels(architecture: Architecture, outputs: int, inputs: int) -> int:
    """Rows up to which the table has the kernels here serve a layer, of the most they can."""
    return max(
        (
            rows
            for rows in range(1, ROWS[-1] + 1)
            if architecture.launch(
                "dense_linear", rows=rows, outputs=outputs, inputs=inputs
            ).blocks["KERNELS"]
        ),
        default=0,
    )


def _as_rows(x: Tensor) -> Tensor:
    """[..., K] -> [M, K], each row contiguous."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(-1) == 1 else rows.contiguous()
