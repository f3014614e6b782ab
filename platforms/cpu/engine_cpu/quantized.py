"""Linear layers over weights of 8 or 4 bits, with torch operations only: slow, but small.

The same numbers as the native kernels have, up to the rounding of sums: weights are rounded in
groups along the input features that share a scale in bfloat16, 64 features with 8 bits and 32 with
4; inputs are rounded to 8 bits in the same groups, when they come.

Shape legend: N rows, T tokens, I input features, O output features, V vocabulary, W width, E
experts, F width of an expert, A experts active a token, G groups, S features of a group, B bytes of
a packed group.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from engine.platform import OpTable

#: By the names of `EngineConfig.quantization`.
BITS = {"int8": 8, "int4": 4}
GROUP = {8: 64, 4: 32}

SOURCE = "cpu"
PRIORITY = 10
#: Weights that are made floats at a time.
SLICE = 2**20
#: 4 bits: the element of largest magnitude may become minus each of these.
LEVELS = (7.0, 7.6, 8.0, 8.5, 9.0)


def register(table: OpTable) -> None:
    """Add factories for each quantization to a table that the core has filled."""
    for name, bits in BITS.items():
        _register(table, name, bits)


def _register(table: OpTable, quantization: str, bits: int) -> None:
    def unserved(**facts: object) -> str | None:
        return other_weights(quantization, facts.get("quantization"))

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


def other_weights(made: str, wanted: object) -> str | None:
    """Why factories that make weights of `made` do not serve where `wanted` is asked for."""
    if wanted == made:
        return None
    return f"it rounds weights to {made}, and {wanted or 'no rounding'} is asked for"


class QuantizedLinear:
    """
    Args:
        weight: [O, I].
        bias: [O], or None.
        bits: 8 or 4.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, bits: int) -> None:
        self._out, self._in = weight.shape
        self._bits, self._size = bits, GROUP[bits]
        self._dtype = weight.dtype
        self._bias = None if bias is None else bias.float()
        self._groups = -(-self._in // self._size)
        self._rows = max(1, SLICE // (self._groups * self._size))
        shape = (self._out, self._groups)
        self._scales_OG = torch.empty(shape, dtype=torch.bfloat16)
        self._levels_OGB = torch.empty(*shape, self._size * bits // 8, dtype=torch.uint8)
        for start in range(0, self._out, self._rows):
            part = slice(start, start + self._rows)
            scales, levels = _round_weights(self._in_groups(weight[part]), bits)
            self._scales_OG[part], self._levels_OGB[part] = scales, levels
        self.num_bytes = self._scales_OG.nbytes + self._levels_OGB.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        """[..., I] -> [..., O]."""
        x_TI = _round_inputs(self._in_groups(x.reshape(-1, self._in))).flatten(1)
        y_TO = torch.empty(len(x_TI), self._out, dtype=self._dtype)
        for start in range(0, self._out, self._rows):
            part = slice(start, start + self._rows)
            y_TO[:, part] = functional.linear(
                x_TI, self._weights(part), None if self._bias is None else self._bias[part]
            )
        return y_TO.view(*x.shape[:-1], self._out)

    def look_up(self, ids: Tensor) -> Tensor:
        """[T] int64 -> the weight's rows as they were rounded, [T, I]."""
        return self._weights(ids)[:, : self._in].to(self._dtype)

    def _in_groups(self, x: Tensor) -> Tensor:
        """[N, I] -> [N, G, S] float32, the last group filled up with zeros."""
        fill = self._groups * self._size - self._in
        return functional.pad(x.float(), (0, fill)).view(-1, self._groups, self._size)

    def _weights(self, rows: slice | Tensor) -> Tensor:
        """[N, G*S] float32."""
        levels = self._levels_OGB[rows]
        if self._bits == 4:
            levels = torch.cat((levels & 15, levels >> 4), dim=-1)
        offset = 1 << (self._bits - 1)
        return ((levels.float() - offset) * self._scales_OG[rows].float()[..., None]).flatten(1)


class Linear(Protocol):
    num_bytes: int

    def __call__(self, x: Tensor) -> Tensor: ...


class Experts:
    """A mixture of experts (Shazeer et al., 2017): each runs over the tokens that chose it.

    Args:
        gate_up: [E, 2F, W].
        down: [E, W, F].
        quantize: makes a linear layer of a matrix.
    """

    def __init__(
        self, gate_up_EGW: Tensor, down_EWF: Tensor, quantize: Callable[[Tensor], Linear]
    ) -> None:
        self._gate_up = [quantize(weight) for weight in gate_up_EGW]
        self._down = [quantize(weight) for weight in down_EWF]
        self.num_bytes = sum(one.num_bytes for one in (*self._gate_up, *self._down))

    def __call__(self, x_TW: Tensor, share_TA: Tensor, ids_TA: Tensor) -> Tensor:
        """[T, W], [T, A] float32, [T, A] int64 -> [T, W]; the sum over experts is float32."""
        result = torch.zeros(x_TW.shape, dtype=torch.float32)
        for expert in ids_TA.flatten().bincount().nonzero().flatten().tolist():
            tokens, place = torch.where(ids_TA == expert)
            gate, up = self._gate_up[expert](x_TW[tokens]).chunk(2, dim=-1)
            outer = self._down[expert](functional.silu(gate) * up).float()
            result.index_add_(0, tokens, outer * share_TA[tokens, place, None].float())
        return result.to(x_TW.dtype)


def _round_weights(x_NGS: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Scales [N, G] bfloat16 and levels [N, G, B] uint8; of 4 bits the first half of a group's
    levels are low halves of bytes, the second half high ones."""
    scales_NG = _scales_of_8(x_NGS) if bits == 8 else _scales_of_4(x_NGS)
    least, most = (-127, 127) if bits == 8 else (-8, 7)
    levels = (_in_units(x_NGS, scales_NG.float()).clamp(least, most)).to(torch.int16)
    stored = (levels + (1 << (bits - 1))).to(torch.uint8)
    if bits == 4:
        low, high = stored.chunk(2, dim=-1)
        stored = low | high << 4
    return scales_NG, stored


def _scales_of_8(x_NGS: Tensor) -> Tensor:
    """Not below magnitude / 127, so that nothing is cut off."""
    exact = x_NGS.abs().amax(-1) / 127
    scales = exact.bfloat16()
    above = (scales.view(torch.int16) + 1).view(torch.bfloat16)
    return torch.where(scales.float() < exact, above, scales)


def _scales_of_4(x_NGS: Tensor) -> Tensor:
    """Of a few scales, each improved by least squares, those with the smallest squared error."""
    magnitude = x_NGS.abs().amax(-1)
    positive = (x_NGS == magnitude[..., None]).any(-1)
    extreme = torch.where(positive, magnitude, -magnitude)
    best, scales = torch.full_like(magnitude, -1), torch.zeros_like(magnitude)
    for level in LEVELS:
        # Divided as tensors: by a number, torch would multiply with the reciprocal.
        inverse = torch.where(magnitude > 0, torch.full_like(extreme, -level) / extreme, 0)
        levels = (x_NGS * inverse[..., None]).round().clamp(-8, 7)
        product, square = (x_NGS * levels).sum(-1), levels.square().sum(-1).clamp(min=1)
        gain = product / square * product  # the squared error is the sum of squares less this
        better = gain > best
        best = torch.where(better, gain, best)
        scales = torch.where(better, product / square, scales)
    return torch.where(magnitude.isfinite(), scales, magnitude).bfloat16()


def _round_inputs(x_NGS: Tensor) -> Tensor:
    """[N, G, S] float32, as 8 bits have it."""
    scales = x_NGS.abs().amax(-1) / 127
    return _in_units(x_NGS, scales).clamp(-127, 127) * scales[..., None]


def _in_units(x_NGS: Tensor, scales_NG: Tensor) -> Tensor:
    inverse = torch.where(scales_NG != 0, 1 / scales_NG, 0)
    return (x_NGS * inverse[..., None]).round()
