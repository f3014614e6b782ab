"""Activations rounded to fp8 in every call: one scale a row, or one for a group of a row.

Shape legend: M rows, K input features.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine_triton.architecture import Architecture
from engine_triton.linear.product import Scaled

DTYPES = {"e4m3": torch.float8_e4m3fn, "e4m3fnuz": torch.float8_e4m3fnuz}


@triton.jit
def round_rows_kernel(x, levels, scales, inputs, x_stride, MOST: tl.constexpr, BLOCK: tl.constexpr):
    """A program a row, which it reads twice: the second time from the cache."""
    row = tl.program_id(0).to(tl.int64)
    in_block = tl.arange(0, BLOCK)
    largest_K = tl.zeros([BLOCK], tl.float32)
    for start in range(0, inputs, BLOCK):
        at_K = start + in_block
        x_K = tl.load(x + row * x_stride + at_K, mask=at_K < inputs, other=0.0)
        largest_K = tl.maximum(largest_K, tl.abs(x_K.to(tl.float32)))
    scale = _scale(tl.max(largest_K, 0), MOST)
    tl.store(scales + row, scale)
    for start in range(0, inputs, BLOCK):
        at_K = start + in_block
        x_K = tl.load(x + row * x_stride + at_K, mask=at_K < inputs, other=0.0)
        rounded_K = _rounded(x_K.to(tl.float32), scale, MOST, levels.dtype.element_ty)
        tl.store(levels + row * inputs + at_K, rounded_K, mask=at_K < inputs)


@triton.jit
def round_groups_kernel(
    x, levels, scales, inputs, x_stride, MOST: tl.constexpr, GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
):  # fmt: skip
    """A program for some groups of a row."""
    row = tl.program_id(0).to(tl.int64)
    group_G = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    at_GK = group_G[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    x_GK = tl.load(x + row * x_stride + at_GK, mask=at_GK < inputs, other=0.0).to(tl.float32)
    scale_G = _scale(tl.max(tl.abs(x_GK), 1), MOST)
    count = tl.cdiv(inputs, GROUP)
    tl.store(scales + row * count + group_G, scale_G, mask=group_G < count)
    rounded_GK = _rounded(x_GK, scale_G[:, None], MOST, levels.dtype.element_ty)
    tl.store(levels + row * inputs + at_GK, rounded_GK, mask=at_GK < inputs)


@triton.jit
def _scale(largest, MOST: tl.constexpr):
    return tl.where(largest > 0.0, largest / MOST, 1.0)


@triton.jit
def _rounded(x, scale, MOST: tl.constexpr, dtype: tl.constexpr):
    return tl.minimum(tl.maximum(x / scale, -MOST), MOST).to(dtype)


class Rounding:
    """
    Args:
        architecture: one whose `fp8` is a format.
        group: input features that share a scale; None: all of a row.
    """

    def __init__(self, architecture: Architecture, group: int | None) -> None:
        assert architecture.fp8 is not None
        self._dtype = DTYPES[architecture.fp8]
        self._most = torch.finfo(self._dtype).max
        self._group = group
        kernel = "round_rows" if group is None else "round_groups"
        self._launch = architecture.launch(kernel)

    def __call__(self, x_MK: Tensor) -> Scaled:
        """Rows may be strided."""
        rows, inputs = x_MK.shape
        levels = torch.empty(rows, inputs, dtype=self._dtype, device=x_MK.device)
        if self._group is None:
            scales = torch.empty(rows, dtype=torch.float32, device=x_MK.device)
        else:
            groups = triton.cdiv(inputs, self._group)
            scales = torch.empty(rows, groups, dtype=torch.float32, device=x_MK.device)
        self._launch_on(x_MK, levels, scales)
        return Scaled(levels, scales)

    def _launch_on(self, x_MK: Tensor, levels: Tensor, scales: Tensor) -> None:
        rows, inputs = x_MK.shape
        how = {**self._launch.blocks, **self._launch.options}
        facts = (x_MK, levels, scales, inputs, x_MK.stride(0))
        if not rows:
            return
        if self._group is None:
            round_rows_kernel[(rows,)](*facts, MOST=self._most, **how)
        else:
            programs = triton.cdiv(scales.shape[1], self._launch.blocks["GROUPS"])
            round_groups_kernel[rows, programs](*facts, MOST=self._most, GROUP=self._group, **how)
