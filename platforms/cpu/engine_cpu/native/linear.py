"""Linear layers over weights packed into panels.

The packed weights replace the checkpoint's: for every number of tokens the same copy is used. A
tied matrix serves the look-up of the input and the logits of the output.

Shape legend: T tokens, I input features, O output features, V vocabulary, W width.
"""

from collections.abc import Callable

import torch
from engine_cpu_kernels import library
from torch import Tensor

from engine.platform import OpTable
from engine_cpu.native import DTYPES, refuses
from engine_cpu.native.memory import WEIGHTS, NotRecordable, empty, recording

SOURCE = "cpu-native"
PRIORITY = 20

_linear = library().ek_linear
_look_up = library().ek_linear_look_up


def register(table: OpTable) -> None:
    """Add them to a table that the core has filled."""
    for function in (linear, tied_embedding):
        table.register(function.__name__, source=SOURCE, priority=PRIORITY, unless=_refuses)(
            function
        )


def _refuses(
    *, dtype: str, device: str, quantization: str | None = None, **_: object
) -> str | None:
    if quantization is not None:
        return f"it keeps weights as they are, not in {quantization}"
    return refuses(dtype=dtype, device=device)


def linear(weight: Tensor, bias: Tensor | None) -> "PackedLinear":
    return PackedLinear(weight, bias)


def tied_embedding(weight: Tensor) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    packed = PackedLinear(weight, None)
    return packed.look_up, packed


class PackedLinear:
    """
    Args:
        weight: [O, I].
        bias: [O], or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        if weight.stride(1) != 1:
            weight = weight.contiguous()
        self._out, self._in = weight.shape
        self._dtype = weight.dtype
        self._number = DTYPES[weight.dtype]
        self._bias = None if bias is None else bias.to(torch.float32, copy=True).contiguous()
        self._bias_address = None if self._bias is None else self._bias.data_ptr()
        size = library().ek_linear_bytes(self._in, self._out, self._number)
        self._panels = WEIGHTS.allocate(size)
        self._address = self._panels.data_ptr()
        library().ek_linear_pack(
            weight.data_ptr(), weight.stride(0), self._address, self._in, self._out, self._number
        )

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
            self._number,
            DTYPES[dtype],
            len(x),
        ):
            raise NotRecordable("linear", len(x))
        return y

    def look_up(self, ids: Tensor) -> Tensor:
        """[T] int64 -> the weight's rows, [T, I]."""
        y = empty((len(ids), self._in), self._dtype)
        if _look_up(ids.data_ptr(), self._address, y.data_ptr(), self._in, self._number, len(ids)):
            raise NotRecordable("look-up", len(ids))
        return y
