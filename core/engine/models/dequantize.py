"""Weights that a checkpoint keeps in eight bits of floating point, with scales beside them.

`NAME.weight` is float8_e4m3fn or float8_e5m2, and `NAME.weight_scale` or `NAME.weight_scale_inv`
(both are factors, whatever the second one's name says) has one number for

    the whole matrix    []  or [1]
    each row            [O] or [O, 1]
    each block          [O / rows, I / columns], rounded up, where the configuration names the sizes

Scales of activations, should there be any, are not needed: what is read is the product, in the
dtype that is asked for.

Shape legend: O output features, I input features.
"""

import torch
from torch import Tensor

from engine.models.scaling import Scaling

DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2)
#: What follows a weight's name, in the place of "weight".
SUFFIXES = ("weight_scale", "weight_scale_inv")


def factors(
    scales: Tensor, scaling: Scaling, shape: tuple[int, ...], part: tuple[range, range]
) -> Tensor:
    """What the rows and columns `part` of a matrix [O, I] are multiplied by: float32, of a shape
    that broadcasts to theirs.

    Raises:
        ValueError: the scales are of another shape than those of such a matrix.
    """
    scales, rows = scales.float(), part[0]
    if scales.numel() == 1:
        return scales.view(1, 1)
    if scales.shape in ((shape[0],), (shape[0], 1)):
        return scales.view(-1, 1)[rows.start : rows.stop]
    if scaling.block is None:
        raise ValueError(f"{shape[0]} rows have scales {tuple(scales.shape)}")
    counts = tuple(-(-size // step) for size, step in zip(shape, scaling.block, strict=True))
    if tuple(scales.shape) != counts:
        raise ValueError(f"{counts} blocks have scales {tuple(scales.shape)}")
    row_blocks, column_blocks = (
        torch.arange(one.start, one.stop) // step
        for one, step in zip(part, scaling.block, strict=True)
    )
    return scales[row_blocks][:, column_blocks]
