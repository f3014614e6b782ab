"""The vendor's product of fp8 matrices, where torch has it for the device."""

import logging
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from engine_triton.architecture import Architecture
from engine_triton.linear.product import Scaled
from engine_triton.linear.weights import Weight

ScaledMatmul: TypeAlias = Callable[[Scaled], Tensor]  # [M, K] -> [M, O] of dtype `RESULT`

RESULT = torch.bfloat16  # the only one with a scale a row
ALIGNMENT = 16

log = logging.getLogger(__name__)


def scaled_matmul(
    weight: Weight, bias: Tensor | None, architecture: Architecture
) -> ScaledMatmul | None:
    """`torch._scaled_mm` with these weights; None where the chip, or this torch, has none for them.

    Asked once, by running it: which chips, formats and shapes it takes differs from one version of
    torch to the next.
    """
    if architecture.interpreted or weight.levels.device.type in ("cpu", "meta"):
        return None
    if weight.form != "rows" or weight.outputs % ALIGNMENT or weight.inputs % ALIGNMENT:
        return None
    multiply = multiplication(weight, bias)
    if why := refusal(multiply, weight):
        log.info("fp8 layers of %s run on our kernels: %s", tuple(weight.levels.shape), why)
        return None
    return multiply


def refusal(multiply: ScaledMatmul, weight: Weight) -> str | None:
    """Why torch does not multiply by these weights, or None when it does.

    Raises:
        torch.OutOfMemoryError: that says nothing about the product.
    """
    zeros = torch.zeros(2 * ALIGNMENT, weight.inputs, device=weight.levels.device)
    try:
        multiply(Scaled(zeros.to(weight.levels.dtype), zeros[:, 0].contiguous()))
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, NotImplementedError) as error:
        return str(error)
    return None


def multiplication(weight: Weight, bias: Tensor | None) -> ScaledMatmul:
    assert weight.scales is not None
    right_KO, scales_1O = weight.levels.t(), weight.scales[None, :]

    def multiply(x: Scaled) -> Tensor:
        result: Tensor = torch._scaled_mm(
            x.levels,
            right_KO,
            scale_a=x.scales[:, None],
            scale_b=scales_1O,
            bias=bias,
            out_dtype=RESULT,
        )
        return result

    return multiply
