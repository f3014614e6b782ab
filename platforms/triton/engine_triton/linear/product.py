"""Activations times weights of any form: a few rows with K divided among programs, many in tiles.

Shape legend: M rows of activations, O output features, K input features.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine_triton.architecture import Architecture, Launch
from engine_triton.linear.parts import Parts, add_parts
from engine_triton.linear.tiles import accumulate
from engine_triton.linear.weights import Weight

#: Rows up to which a launch is chosen for; beyond the last, the widest. Programs are compiled for
#: each: whoever warms up runs one size of each kind.
ROWS = (16, 64)
MANY = 2**30

#: Of one activation: fp8, bfloat16 or float16, float32.
BYTES = (1, 2, 4)

#: Tiles of rows that neighbouring programs share weights over, while those are in the cache.
NEIGHBOURS = 8


@dataclass(frozen=True, slots=True)
class Scaled:
    """fp8 activations [M, K], and their scales: [M], or [M, ceil(K / group)], float32."""

    levels: Tensor
    scales: Tensor


@triton.jit(do_not_specialize=["rows", "steps"])
def product_kernel(
    x,
    x_scales,
    w,
    scales,
    zeros,
    bias,
    out,
    rows,
    outputs,
    inputs,
    x_stride,
    w_stride,
    steps,
    FORM: tl.constexpr,
    GROUP: tl.constexpr,
    SPLIT: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_K: tl.constexpr,
    NEIGHBOURS: tl.constexpr,
):
    """A tile of BLOCK_O features of BLOCK_M rows, over `steps` blocks of K."""
    across, down = tl.cdiv(outputs, BLOCK_O), tl.cdiv(rows, BLOCK_M)
    tile = tl.program_id(0)
    row, column = tl.swizzle2d(tile // across, tile % across, down, across, NEIGHBOURS)
    part = tl.program_id(1)
    features_O = column * BLOCK_O + tl.arange(0, BLOCK_O)
    rows_M = row * BLOCK_M + tl.arange(0, BLOCK_M)
    # What lies past the last row or feature computes that again, and is not stored.
    w_rows_O = tl.minimum(features_O, outputs - 1).to(tl.int64)
    x_rows_M = tl.minimum(rows_M, rows - 1).to(tl.int64)
    first = part * steps * BLOCK_K
    total_OM = accumulate(
        tl.zeros([BLOCK_O, BLOCK_M], tl.float32),
        x, x_scales, x_rows_M * x_stride, x_rows_M * tl.cdiv(inputs, GROUP),
        w, scales, zeros, w_rows_O, w_stride,
        first, tl.minimum(first + steps * BLOCK_K, inputs), inputs,
        FORM, GROUP, EVEN, BLOCK_K,
    )  # fmt: skip
    if FORM == "rows":
        total_OM *= tl.load(scales + w_rows_O)[:, None]
        if x_scales is not None:
            total_OM *= tl.load(x_scales + x_rows_M)[None, :]
    if SPLIT:
        out += part.to(tl.int64) * rows * outputs
    elif bias is not None:
        total_OM += tl.load(bias + w_rows_O).to(tl.float32)[:, None]
    there_OM = (features_O < outputs)[:, None] & (rows_M < rows)[None, :]
    at_OM = out + (rows_M.to(tl.int64) * outputs)[None, :] + features_O[:, None]
    tl.store(at_OM, total_OM.to(out.dtype.element_ty), mask=there_OM)


class Product:
    """Made of weights and a chip, once; then `x @ weight.T + bias` for any number of rows.

    Args:
        weight: as kernels read it.
        bias: [O], or None.
    """

    def __init__(self, weight: Weight, bias: Tensor | None, architecture: Architecture) -> None:
        self._weight, self._bias = weight, bias
        self._launches = launches("linear", architecture, weight)
        self._parts = {
            size: Parts.of(
                triton.cdiv(weight.outputs, few.blocks["BLOCK_O"]),
                triton.cdiv(weight.inputs, few.blocks["BLOCK_K"]),
                architecture.processors,
            )
            for size, (few, *_) in self._launches.items()
        }

    def __call__(self, x: Tensor | Scaled, dtype: torch.dtype) -> Tensor:
        """[M, K], rows K numbers apart or more -> [M, O] of `dtype`, summed in float32."""
        x_MK, x_scales = (x.levels, x.scales) if isinstance(x, Scaled) else (x, None)
        weight, rows = self._weight, len(x_MK)
        out = torch.empty(rows, weight.outputs, dtype=dtype, device=x_MK.device)
        if not rows:
            return out
        launch = self._launches[x_MK.itemsize][size_of(rows)]
        blocks = launch.blocks
        if rows <= ROWS[0]:
            parts = self._parts[x_MK.itemsize]
        else:
            parts = Parts(1, triton.cdiv(weight.inputs, blocks["BLOCK_K"]))
        split = parts.count > 1
        target = out.new_empty(parts.count, *out.shape, dtype=torch.float32) if split else out
        across = triton.cdiv(weight.outputs, blocks["BLOCK_O"])
        tiles = across * triton.cdiv(rows, blocks["BLOCK_M"])
        product_kernel[tiles, parts.count](
            x_MK, x_scales, weight.levels, weight.scales, weight.zeros, self._bias, target,
            rows, weight.outputs, weight.inputs, x_MK.stride(0), weight.levels.stride(0),
            parts.steps, FORM=weight.form, GROUP=weight.group, SPLIT=split,
            EVEN=weight.inputs % blocks["BLOCK_K"] == 0, NEIGHBOURS=NEIGHBOURS,
            **blocks, **launch.options,
        )  # fmt: skip
        if split:
            add_parts(target, self._bias, out)
        return out


def size_of(rows: int) -> int:
    """The place of the launch for so many rows among `launches`."""
    return sum(rows > most for most in ROWS)


def launches(kernel: str, architecture: Architecture, weight: Weight) -> dict[int, list[Launch]]:
    """By the bytes of one activation: the launches for few, some and many rows.

    The table may choose by any of these facts.
    """
    return {
        size: [
            architecture.launch(
                kernel,
                rows=rows,
                bytes=size,
                form=weight.form,
                bits=4 if weight.form == "groups" else 8 * weight.levels.itemsize,
                outputs=weight.outputs,
                inputs=weight.inputs,
            )
            for rows in (*ROWS, MANY)
        ]
        for size in BYTES
    }
