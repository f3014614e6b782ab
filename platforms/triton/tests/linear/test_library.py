"""The vendor's fp8 product: where it is asked for, and how."""

from dataclasses import replace

import pytest
import torch

from engine_triton.architecture import Architecture
from engine_triton.linear import rounding
from engine_triton.linear.library import multiplication, refusal, scaled_matmul
from engine_triton.linear.product import Scaled
from engine_triton.linear.weights import Weight

CHIP = Architecture.named("sm_90")


def weight(outputs: int = 64, inputs: int = 128, device: str = "cpu") -> Weight:
    made = rounding.to_fp8(torch.ones(outputs, inputs))
    assert made.scales is not None
    return replace(made, levels=made.levels.to(device), scales=made.scales.to(device))


def test_the_host_and_the_interpreter_have_none(architecture: Architecture) -> None:
    assert scaled_matmul(weight(), None, CHIP) is None
    assert scaled_matmul(weight(device="meta"), None, CHIP) is None
    assert scaled_matmul(weight(), None, architecture) is None


def test_it_multiplies_what_was_rounded() -> None:
    """On the host, which has this product too."""
    random = torch.Generator().manual_seed(0)
    w, x = (torch.randn(rows, 64, generator=random) for rows in (48, 20))
    bias = torch.randn(48, generator=random).bfloat16()
    rounded, activations = rounding.to_fp8(w), rounding.to_fp8(x)
    assert activations.scales is not None
    found = multiplication(rounded, bias)(Scaled(activations.levels, activations.scales))
    left, right = (
        one.rows(torch.arange(one.outputs), torch.float32).double()
        for one in (activations, rounded)
    )
    exact = left @ right.T + bias.double()
    assert float((found.double() - exact).abs().max() / exact.abs().max()) < 8e-3


def test_shapes_strides_and_dtypes_are_those_that_torch_checks_for() -> None:
    """On a device without memory torch runs its checks and computes nothing."""
    bias = torch.empty(64, device="meta", dtype=torch.bfloat16)
    levels = torch.empty(20, 128, device="meta", dtype=torch.float8_e4m3fn)
    for one in (bias, None):
        multiply = multiplication(weight(device="meta"), one)
        found = multiply(Scaled(levels, torch.empty(20, device="meta")))
        assert (found.shape, found.dtype) == ((20, 64), torch.bfloat16)
        with pytest.raises(RuntimeError):
            multiply(Scaled(levels, torch.empty(19, device="meta")))


def test_a_product_that_torch_refuses_has_a_reason_and_one_that_it_has_none() -> None:
    def refuse(x: Scaled) -> torch.Tensor:
        raise RuntimeError("only for newer chips")

    assert refusal(refuse, weight()) == "only for newer chips"
    assert refusal(multiplication(weight(), None), weight()) is None


def test_a_device_that_is_full_is_not_taken_for_one_without_the_product() -> None:
    def full(x: Scaled) -> torch.Tensor:
        raise torch.OutOfMemoryError("no room")

    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        refusal(full, weight())
