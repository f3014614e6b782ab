"""Linear layers over weights of 8 or 4 bits, by the native kernels.

The weights are rounded when they are loaded, and the checkpoint's given up: in groups along the
input features that share a scale, 64 with 8 bits, 32 with 4. Inputs are rounded to 8 bits on the
way, group by group, and products summed in whole numbers (W8A8, W4A8). The format is drawn in
`kernels/src/quantized.inl`.

Shape legend: T tokens, I input features, O output features, V vocabulary, W width, E experts, F
width of an expert.
"""

from collections.abc import Callable

import torch
from engine_cpu_kernels import library
from torch import Tensor

from engine.platform import OpTable
from engine_cpu.native import DTYPES, refuses
from engine_cpu.native.memory import WEIGHTS, NotRecordable, empty, recording
from engine_cpu.quantized import BITS, Experts, other_weights

SOURCE = "cpu-native"
PRIORITY = 20

_linear = library().ek_quantized_linear
_look_up = library().ek_quantized_look_up


def register(table: OpTable) -> None:
    """Add factories for each quantization to a table that the core has filled."""
    for name, bits in BITS.items():
        _register(table, name, bits)


def _register(table: OpTable, quantization: str, bits: int) -> None:
    def unserved(*, dtype: str, device: str, **facts: object) -> str | None:
        wanted = facts.get("quantization")
        return other_weights(quantization, wanted) or refuses(dtype=dtype, device=device)

    def linear(weight: Tensor, bias: Tensor | None) -> QuantizedLinear:
        return QuantizedLinear(weight, bias, bits)

    def tied_embedding(weight: Tensor) -> tuple[Callable[[Tensor], Tensor], QuantizedLinear]:
        packed = QuantizedLinear(weight, None, bits)
        return packed.look_up, packed

    def mixture_of_experts(gate_up_EGW: Tensor, down_EWF: Tensor) -> Experts:
        return Experts(gate_up_EGW, down_EWF, lambda weight: QuantizedLinear(weight, None, bits))

    for factory in (linear, tied_embedding, mixture_of_experts):
        add = table.register(factory.__name__, source=SOURCE, priority=PRIORITY, unless=unserved)
        add(factory)


class QuantizedLinear:
    """
    Args:
        weight: [O, I].
        bias: [O], or None.
        bits: 8 or 4.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, bits: int) -> None:
        if weight.stride(1) != 1:
            weight = weight.contiguous()
        self._out, self._in = weight.shape
        self._bits = bits
        self._dtype = weight.dtype
        self._number = DTYPES[weight.dtype]
        self._bias = None if bias is None else bias.to(torch.float32, copy=True).contiguous()
        self._bias_address = None if self._bias is None else self._bias.data_ptr()
        self.num_bytes: int = library().ek_quantized_bytes(self._in, self._out, bits)
        self._packed = WEIGHTS.allocate(self.num_bytes)
        self._address = self._packed.data_ptr()
        source = (weight.data_ptr(), weight.stride(0))
        library().ek_quantized_pack(*source, self._address, self._in, self._out, bits, self._number)

    def __call__(self, x: Tensor) -> Tensor:
        """[..., I] -> [..., O]."""
        return self._multiply(x, self._dtype)

    def in_float32(self, x: Tensor) -> Tensor:
        """[..., I] -> [..., O] float32: sums as they are, not rounded to the dtype of `x`."""
        return self._multiply(x, torch.float32)

    def _multiply(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        if x.dim() != 2 or x.stride(1) != 1:
            if recording():
                raise NotRecordable("linear of rows that are not contiguous", len(x))
            y = self._multiply(x.reshape(-1, self._in), dtype)
            return y.view(*x.shape[:-1], self._out)
        y = empty((len(x), self._out), dtype)
        if _linear(
            x.data_ptr(),
            x.stride(0),
            self._address,
            self._bias_address,
            y.data_ptr(),
            self._out,
            self._in,
            self._out,
            self._bits,
            self._number,
            DTYPES[dtype],
            len(x),
        ):
            raise NotRecordable("linear", len(x))
        return y

    def look_up(self, ids: Tensor) -> Tensor:
        """[T] int64 -> the weight's rows as they were rounded, [T, I]."""
        y = empty((len(ids), self._in), self._dtype)
        kind = (self._bits, self._number)
        if _look_up(ids.data_ptr(), self._address, y.data_ptr(), self._in, *kind, len(ids)):
            raise NotRecordable("look-up", len(ids))
        return y
