"""Weights rounded to fewer bits, once, on the device that holds them.

Shape legend: O output features, K input features, N rows, G groups, S features of a group.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from engine_triton.linear.weights import Weight

#: The largest value of e4m3 (Micikevicius et al., 2022, FP8 formats for deep learning).
E4M3_MAX = 448.0
#: 4 bits: of each group the weight of largest magnitude may become minus one of these.
EXTREMES = (7.0, 7.6, 8.0, 8.5, 9.0)
GROUP = 32
#: Weights that are made float32 at a time.
SLICE = 2**24


def to_int8(weight_OK: Tensor) -> Weight:
    """One scale a row: the largest magnitude becomes 127."""

    def round_rows(wide_NK: Tensor) -> tuple[Tensor, ...]:
        scales_N = wide_NK.abs().amax(-1) / 127
        return torch.round(wide_NK / _not_zero(scales_N)).to(torch.int8), scales_N

    levels, scales = _in_slices(weight_OK, round_rows)
    return Weight(form="rows", levels=levels, scales=scales, inputs=weight_OK.shape[1])


def to_fp8(weight_OK: Tensor) -> Weight:
    """One scale a row: the largest magnitude becomes the largest of e4m3."""

    def round_rows(wide_NK: Tensor) -> tuple[Tensor, ...]:
        scales_N = wide_NK.abs().amax(-1) / E4M3_MAX
        levels = (wide_NK / _not_zero(scales_N)).clamp(-E4M3_MAX, E4M3_MAX)
        return levels.to(torch.float8_e4m3fn), scales_N

    levels, scales = _in_slices(weight_OK, round_rows)
    return Weight(form="rows", levels=levels, scales=scales, inputs=weight_OK.shape[1])


def to_int4(weight_OK: Tensor, group: int = GROUP) -> Weight:
    """A bfloat16 scale for each `group` weights of a row, levels of -8 to 7, no zero points.

    Of a few scales, each improved by least squares, each group has that of the least squared error.
    """

    def round_rows(wide_NK: Tensor) -> tuple[Tensor, ...]:
        x_NGS = in_groups(wide_NK, group)
        scales_NG = _least_squares(x_NGS)
        return _levels(x_NGS, scales_NG.float()) + 8, scales_NG

    levels, scales = _in_slices(weight_OK, round_rows)
    return packed(levels.flatten(1), scales, None, group, weight_OK.shape[1])


def to_int4_with_zeros(weight_OK: Tensor, group: int = GROUP) -> Weight:
    """As `to_int4`, but levels of 0 to 15 from each group's least value, or 0, to its most."""

    def round_rows(wide_NK: Tensor) -> tuple[Tensor, ...]:
        x_NGS = in_groups(wide_NK, group)
        least, most = x_NGS.amin(-1).clamp(max=0), x_NGS.amax(-1).clamp(min=0)
        scales_NG = ((most - least) / 15).bfloat16()
        inverse = _inverse(scales_NG.float())
        zeros_NG = torch.round(-least * inverse).clamp(0, 15)
        levels = torch.round(x_NGS * inverse[..., None]) + zeros_NG[..., None]
        return levels.clamp(0, 15).to(torch.int16), scales_NG, zeros_NG.to(torch.uint8)

    levels, scales, zeros = _in_slices(weight_OK, round_rows)
    return packed(levels.flatten(1), scales, zeros, group, weight_OK.shape[1])


def packed(
    levels: Tensor, scales_OG: Tensor, zeros_OG: Tensor | None, group: int, inputs: int
) -> Weight:
    """Weights of 4 bits from levels of 0 to 15, [O, G * group], two in a byte."""
    low, high = levels.to(torch.uint8).unflatten(-1, (-1, group)).chunk(2, dim=-1)
    return Weight(
        form="groups",
        levels=(low | high << 4).flatten(1),
        scales=scales_OG.contiguous(),
        zeros=None if zeros_OG is None else zeros_OG.contiguous(),
        group=group,
        inputs=inputs,
    )


def in_groups(x_NK: Tensor, group: int) -> Tensor:
    """[N, K] -> [N, G, group], the last group filled up with zeros."""
    x_NGS: Tensor = functional.pad(x_NK, (0, -x_NK.shape[1] % group)).unflatten(-1, (-1, group))
    return x_NGS


def _least_squares(x_NGS: Tensor) -> Tensor:
    """Scales [N, G] bfloat16."""
    magnitude = x_NGS.abs().amax(-1)
    extreme = torch.where((x_NGS == magnitude[..., None]).any(-1), magnitude, -magnitude)
    best, scales = torch.full_like(magnitude, -1), torch.zeros_like(magnitude)
    for level in EXTREMES:
        # A quotient of tensors: by a number, torch may multiply with the reciprocal.
        inverse = torch.where(magnitude > 0, torch.full_like(extreme, -level) / extreme, 0)
        levels = (x_NGS * inverse[..., None]).round().clamp(-8, 7)
        product, square = (x_NGS * levels).sum(-1), levels.square().sum(-1).clamp(min=1)
        gain = product / square * product  # the squared error is the sum of squares less this
        better = gain > best
        best = torch.where(better, gain, best)
        scales = torch.where(better, product / square, scales)
    return scales.bfloat16()


def _levels(x_NGS: Tensor, scales_NG: Tensor) -> Tensor:
    return (x_NGS * _inverse(scales_NG)[..., None]).round().clamp(-8, 7).to(torch.int16)


def _inverse(scales: Tensor) -> Tensor:
    return torch.where(scales != 0, 1 / scales, 0)


def _not_zero(scales_N: Tensor) -> Tensor:
    return torch.where(scales_N > 0, scales_N, 1)[:, None]


def _in_slices(
    weight_OK: Tensor, round_rows: Callable[[Tensor], tuple[Tensor, ...]]
) -> tuple[Tensor, ...]:
    """`round_rows` of a few rows at a time, put together."""
    size = max(1, SLICE // weight_OK.shape[1])
    parts = [round_rows(part.float()) for part in weight_OK.split(size)]
    return tuple(torch.cat(same) for same in zip(*parts, strict=True))
