"""One row of activations times weights as they are: as many bytes in flight as registers hold.

Shape legend: O output features, K input features.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine_triton.architecture import Launch
from engine_triton.linear.parts import Parts, add_parts


@triton.jit(do_not_specialize=["steps"])
def gemv_kernel(
    x,
    w,
    bias,
    out,
    outputs,
    inputs,
    steps,
    SPLIT: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Each program has BLOCK_O features and `steps` blocks of K; it sums once, at the end.

    STAGES above 1 has the loads of so many blocks under way, by way of shared memory.
    """
    features_O = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    part = tl.program_id(1)
    in_block = tl.arange(0, BLOCK_K)
    # Features past the last one compute that again, and are not stored.
    rows_O1 = w + (tl.minimum(features_O, outputs - 1).to(tl.int64) * inputs)[:, None]
    sums_OK = tl.zeros([BLOCK_O, BLOCK_K], tl.float32)
    first = part * steps * BLOCK_K
    last = tl.minimum(first + steps * BLOCK_K, inputs)
    for start in tl.range(first, last, BLOCK_K, num_stages=STAGES):
        at_K = start + in_block
        if EVEN:
            w_OK = tl.load(rows_O1 + at_K[None, :])
            x_K = tl.load(x + at_K)
        else:
            w_OK = tl.load(rows_O1 + at_K[None, :], mask=at_K[None, :] < inputs, other=0.0)
            x_K = tl.load(x + at_K, mask=at_K < inputs, other=0.0)
        sums_OK += w_OK.to(tl.float32) * x_K.to(tl.float32)[None, :]
    total_O = tl.sum(sums_OK, 1)
    if SPLIT:
        out += part * outputs
    elif bias is not None:
        total_O += tl.load(bias + features_O, mask=features_O < outputs, other=0.0).to(tl.float32)
    tl.store(out + features_O, total_O.to(out.dtype.element_ty), mask=features_O < outputs)


def gemv(
    x_1K: Tensor, weight_OK: Tensor, bias: Tensor | None, launch: Launch, parts: Parts
) -> Tensor:
    """[1, K] with K contiguous -> [1, O], summed in float32.

    Args:
        launch: of the table's kernel "gemv".
        parts: how K is divided among programs.
    """
    outputs, inputs = weight_OK.shape
    out = x_1K.new_empty(1, outputs)
    split = parts.count > 1
    target = x_1K.new_empty(parts.count, outputs, dtype=torch.float32) if split else out
    grid = (triton.cdiv(outputs, launch.blocks["BLOCK_O"]), parts.count)
    gemv_kernel[grid](
        x_1K, weight_OK, bias, target, outputs, inputs, parts.steps,
        SPLIT=split, EVEN=inputs % launch.blocks["BLOCK_K"] == 0,
        **launch.blocks, **launch.options,
    )  # fmt: skip
    if split:
        add_parts(target, bias, out)
    return out
