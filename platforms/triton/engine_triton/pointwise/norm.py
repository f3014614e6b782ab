"""Root mean square normalization (Zhang and Sennrich, 2019), alone or after an addition.

A program has the whole of one row, or of several short ones: a row is read once.

Shape legend: T tokens, H heads, W width, R rows of a program.
"""

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine_triton.architecture import Architecture, Launch

#: Features of a row: what one program holds in registers.
MAX_WIDTH = 16384


def unless(*, width: int, **_: object) -> str | None:
    """Why a layer of these facts is not served."""
    return None if width <= MAX_WIDTH else f"a row of {width} features has more than {MAX_WIDTH}"


def operations(architecture: Architecture) -> dict[str, Callable[..., Any]]:
    norm = RMSNorm(architecture)
    return {"rms_norm": norm, "add_rms_norm": norm.add}


class RMSNorm:
    """Rows may lie apart, as the heads of a packed projection do; features are side by side."""

    def __init__(self, architecture: Architecture) -> None:
        self._architecture = architecture
        self._launches: dict[int, Launch] = {}  # by width

    def __call__(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """[..., W] -> [..., W], contiguous."""
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        rows = (
            x if x.ndim in (2, 3) and x.stride(-1) == 1 else x.reshape(-1, x.shape[-1]).contiguous()
        )
        inner = rows.shape[1] if rows.ndim == 3 else 1
        strides = rows.stride()[:2] if rows.ndim == 3 else (rows.stride(0), 0)
        self._launch(rows, strides, inner, None, weight, out, None, eps)
        return out

    def add(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """Of [T, W] each: the normed sum, and the sum, which is rounded before the norm."""
        out, total = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for _ in range(2))
        x, residual = (one if one.stride(-1) == 1 else one.contiguous() for one in (x, residual))
        self._launch(x, (x.stride(0), 0), 1, residual, weight, out, total, eps)
        return out, total

    def _launch(
        self,
        x: Tensor,
        strides: tuple[int, ...],
        inner: int,
        residual: Tensor | None,
        weight: Tensor,
        out: Tensor,
        total: Tensor | None,
        eps: float,
    ) -> None:
        width = x.shape[-1]
        launch = self._launches.get(width)
        if launch is None:
            launch = self._launches[width] = self._architecture.launch("rms_norm", width=width)
        if not (rows := out.numel() // width):
            return
        _rms_norm[(triton.cdiv(rows, launch.blocks["ROWS"]),)](
            x, residual, weight, out, total, rows, inner, *strides,
            residual.stride(0) if residual is not None else 0,
            width, eps,
            WIDTH=triton.next_power_of_2(width),
            **launch.blocks, **launch.options,
        )  # fmt: skip


@triton.jit(do_not_specialize=["rows"])
def _rms_norm(
    x_ptr, residual_ptr, weight_ptr, out_ptr, total_ptr,
    rows, inner, x_outer, x_inner, residual_stride, width, eps,
    WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row_R1 = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None].to(tl.int64)
    at_1W = tl.arange(0, WIDTH)[None, :]
    mask = (row_R1 < rows) & (at_1W < width)
    start_R1 = (row_R1 // inner) * x_outer + (row_R1 % inner) * x_inner
    x = tl.load(x_ptr + start_R1 + at_1W, mask, other=0.0)
    if residual_ptr is not None:
        residual = tl.load(residual_ptr + row_R1 * residual_stride + at_1W, mask, other=0.0)
        x = (x.to(tl.float32) + residual.to(tl.float32)).to(x.dtype)
        tl.store(total_ptr + row_R1 * width + at_1W, x, mask)
    wide = x.to(tl.float32)
    mean_R1 = (tl.sum(wide * wide, axis=1) / width)[:, None]
    weight = tl.load(weight_ptr + at_1W, at_1W < width, other=0.0).to(tl.float32)
    normed = wide * tl.rsqrt(mean_R1 + eps) * weight
    tl.store(out_ptr + row_R1 * width + at_1W, normed.to(x.dtype), mask)
