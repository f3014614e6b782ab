"""A mixture of experts (Shazeer et al., 2017): each runs over the tokens that chose it.

Four kernels: routing; the gate and up projections with the activation; the down projection; and
the sum over a token's experts, in their order. Equal inputs give equal bits, and all sizes depend
on shapes alone, so that a graph may hold a step.

Shape legend: T tokens, A experts active a token, E experts, W width, F width of one expert,
N = T * A assignments, M rows of a tile, O output features, K input features.
"""

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine_triton.architecture import Architecture, Launch
from engine_triton.linear.product import launches, size_of
from engine_triton.linear.routing import Routes, route
from engine_triton.linear.tiles import accumulate
from engine_triton.linear.weights import Weight


@triton.jit
def gate_up_kernel(
    x, w, scales, zeros, order, tiles, inner, active, width, inputs, x_stride, w_stride,
    FORM: tl.constexpr, GROUP: tl.constexpr, EVEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """silu(gate) * up of a tile, written in the order of `order`. BLOCK_O is half gate, half up."""
    tile = tiles + tl.program_id(0) * 3
    expert = tl.load(tile)
    if expert < 0:
        return
    HALF: tl.constexpr = BLOCK_O // 2
    place_M = tl.load(tile + 1) + tl.arange(0, BLOCK_M)
    end = tl.load(tile + 2)
    token_M = tl.load(order + tl.minimum(place_M, end - 1)) // active
    both_O = tl.arange(0, BLOCK_O)
    feature_O = tl.minimum(tl.program_id(1) * HALF + both_O % HALF, width - 1)
    w_rows_O = expert.to(tl.int64) * 2 * width + both_O // HALF * width + feature_O
    total_OM = accumulate(
        tl.zeros([BLOCK_O, BLOCK_M], tl.float32),
        x, None, token_M.to(tl.int64) * x_stride, None,
        w, scales, zeros, w_rows_O, w_stride, 0, inputs, inputs, FORM, GROUP, EVEN, BLOCK_K,
    )  # fmt: skip
    if FORM == "rows":
        total_OM *= tl.load(scales + w_rows_O)[:, None]
    halves = tl.permute(tl.reshape(total_OM, (2, HALF, BLOCK_M)), (1, 2, 0))
    gate_FM, up_FM = tl.split(halves)
    inner_FM = gate_FM * tl.sigmoid(gate_FM) * up_FM
    feature_F = tl.program_id(1) * HALF + tl.arange(0, HALF)
    there_FM = (feature_F < width)[:, None] & (place_M < end)[None, :]
    at_FM = inner + (place_M.to(tl.int64) * width)[None, :] + feature_F[:, None]
    tl.store(at_FM, inner_FM.to(inner.dtype.element_ty), mask=there_FM)


@triton.jit
def down_kernel(
    inner, w, scales, zeros, order, tiles, outer, outputs, inputs, w_stride,
    FORM: tl.constexpr, GROUP: tl.constexpr, EVEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A tile's results, written where each assignment's number says."""
    tile = tiles + tl.program_id(0) * 3
    expert = tl.load(tile)
    if expert < 0:
        return
    place_M = tl.load(tile + 1) + tl.arange(0, BLOCK_M)
    end = tl.load(tile + 2)
    row_M = tl.minimum(place_M, end - 1)
    feature_O = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    w_rows_O = expert.to(tl.int64) * outputs + tl.minimum(feature_O, outputs - 1)
    total_OM = accumulate(
        tl.zeros([BLOCK_O, BLOCK_M], tl.float32),
        inner, None, row_M.to(tl.int64) * inputs, None,
        w, scales, zeros, w_rows_O, w_stride, 0, inputs, inputs, FORM, GROUP, EVEN, BLOCK_K,
    )  # fmt: skip
    if FORM == "rows":
        total_OM *= tl.load(scales + w_rows_O)[:, None]
    number_M = tl.load(order + row_M).to(tl.int64)
    there_OM = (feature_O < outputs)[:, None] & (place_M < end)[None, :]
    at_OM = outer + (number_M * outputs)[None, :] + feature_O[:, None]
    tl.store(at_OM, total_OM.to(outer.dtype.element_ty), mask=there_OM)


@triton.jit
def weigh_kernel(outer, share, out, width, ACTIVE: tl.constexpr, BLOCK: tl.constexpr):
    """The sum of a token's experts times their shares, in float32."""
    token = tl.program_id(0).to(tl.int64)
    at_W = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total_W = tl.zeros([BLOCK], tl.float32)
    for place in tl.static_range(ACTIVE):
        number = token * ACTIVE + place
        outer_W = tl.load(outer + number * width + at_W, mask=at_W < width, other=0.0)
        total_W += tl.load(share + number).to(tl.float32) * outer_W.to(tl.float32)
    tl.store(out + token * width + at_W, total_W.to(out.dtype.element_ty), mask=at_W < width)


class Experts:
    """
    Args:
        gate_up_EOW: [E, 2F, W].
        down_EWF: [E, W, F].
        store: makes what is kept of a matrix, of all experts' rows one after the other.
    """

    def __init__(
        self,
        gate_up_EOW: Tensor,
        down_EWF: Tensor,
        store: Callable[[Tensor], Weight],
        architecture: Architecture,
    ) -> None:
        self._experts, self._width, self._inner = down_EWF.shape
        self._gate_up = store(gate_up_EOW.flatten(0, 1)).as_stored(architecture.fp8)
        self._down = store(down_EWF.flatten(0, 1)).as_stored(architecture.fp8)
        self.num_bytes = self._gate_up.num_bytes + self._down.num_bytes
        self._launches = launches("experts", architecture, self._gate_up)
        self._route = architecture.launch("route", experts=self._experts)
        self._weigh = architecture.launch("weigh", width=self._width)

    def __call__(self, x_TW: Tensor, share_TA: Tensor, ids_TA: Tensor) -> Tensor:
        """[T, W], [T, A] float32, [T, A] int64 -> [T, W]; the sum over experts is float32."""
        out_TW = torch.empty(x_TW.shape, dtype=x_TW.dtype, device=x_TW.device)
        if not len(x_TW):
            return out_TW
        each = -(-ids_TA.numel() // self._experts)
        launch = self._launches[x_TW.itemsize][size_of(each)]
        routes = route(ids_TA, self._experts, launch.blocks["BLOCK_M"], self._route)
        rows = x_TW if x_TW.stride(-1) == 1 else x_TW.contiguous()
        inner_NF = self._up(rows, routes, ids_TA.shape[1], launch)
        outer_NW = self._back(inner_NF, routes, launch)
        grid = (len(x_TW), triton.cdiv(self._width, self._weigh.blocks["BLOCK"]))
        weigh_kernel[grid](
            outer_NW, share_TA.contiguous(), out_TW, self._width, ACTIVE=ids_TA.shape[1],
            **self._weigh.blocks, **self._weigh.options,
        )  # fmt: skip
        return out_TW

    def _up(self, x_TW: Tensor, routes: Routes, active: int, launch: Launch) -> Tensor:
        weight, blocks = self._gate_up, launch.blocks
        inner_NF = x_TW.new_empty(len(routes.order_N), self._inner)
        grid = (len(routes.tiles), triton.cdiv(self._inner, blocks["BLOCK_O"] // 2))
        gate_up_kernel[grid](
            x_TW, weight.levels, weight.scales, weight.zeros, routes.order_N, routes.tiles,
            inner_NF, active, self._inner, weight.inputs, x_TW.stride(0), weight.levels.stride(0),
            FORM=weight.form, GROUP=weight.group, EVEN=weight.inputs % blocks["BLOCK_K"] == 0,
            **blocks, **launch.options,
        )  # fmt: skip
        return inner_NF

    def _back(self, inner_NF: Tensor, routes: Routes, launch: Launch) -> Tensor:
        weight, blocks = self._down, launch.blocks
        outer_NW = inner_NF.new_empty(len(inner_NF), self._width)
        grid = (len(routes.tiles), triton.cdiv(self._width, blocks["BLOCK_O"]))
        down_kernel[grid](
            inner_NF, weight.levels, weight.scales, weight.zeros, routes.order_N, routes.tiles,
            outer_NW, self._width, weight.inputs, weight.levels.stride(0),
            FORM=weight.form, GROUP=weight.group, EVEN=weight.inputs % blocks["BLOCK_K"] == 0,
            **blocks, **launch.options,
        )  # fmt: skip
        return outer_NW
