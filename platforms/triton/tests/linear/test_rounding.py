"""What weights are rounded to."""

import pytest
import torch
from torch import Tensor

from engine_cpu.quantized import QuantizedLinear
from engine_triton.linear import rounding


@pytest.fixture
def weight() -> Tensor:
    random = torch.Generator().manual_seed(7)
    weight = torch.randn(20, 200, generator=random)
    weight[3] = 0
    weight[4, 32:64] = 0
    weight[5] *= 1e-4
    return weight


def rows(weight: Tensor, rounded: object) -> Tensor:
    assert isinstance(rounded, rounding.Weight)
    return rounded.rows(torch.arange(len(weight)), torch.float32)


def test_int8_is_off_by_half_a_step_at_most(weight: Tensor) -> None:
    rounded = rounding.to_int8(weight)
    assert rounded.levels.abs().max() == 127
    steps = weight.abs().amax(-1, keepdim=True) / 127
    assert ((rows(weight, rounded) - weight).abs() <= 0.5001 * steps).all()


def test_fp8_is_off_by_half_a_place_of_three_bits_at_most(weight: Tensor) -> None:
    rounded = rounding.to_fp8(weight)
    assert rounded.levels.dtype == torch.float8_e4m3fn
    # The smallest step is that of subnormals, 2^-9.
    smallest = weight.abs().amax(-1, keepdim=True) / rounding.E4M3_MAX * 2.0**-9
    allowed = torch.maximum(weight.abs() * 2.0**-4, smallest / 2) * 1.0001
    assert ((rows(weight, rounded) - weight).abs() <= allowed).all()


def test_int4_rounds_as_the_platform_of_processors_does(weight: Tensor) -> None:
    theirs = QuantizedLinear(weight, None, 4).look_up(torch.arange(len(weight)))
    torch.testing.assert_close(rows(weight, rounding.to_int4(weight)), theirs, rtol=0, atol=0)


@pytest.mark.parametrize("group", [32, 64, 128])
def test_zero_points_serve_groups_that_lie_to_one_side_of_zero(weight: Tensor, group: int) -> None:
    aside = weight.abs() + 0.5
    rounded = rounding.to_int4_with_zeros(aside, group)
    off = (rows(aside, rounded) - aside).square().mean()
    symmetric = (rows(aside, rounding.to_int4(aside, group)) - aside).square().mean()
    assert off < 0.5 * symmetric


@pytest.mark.parametrize("group", [32, 64, 128])
def test_with_zero_points_too_no_weight_is_off_by_more_than_a_step(
    weight: Tensor, group: int
) -> None:
    rounded = rounding.to_int4_with_zeros(weight, group)
    groups = rounding.in_groups(weight, group)
    least, most = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    step = ((most - least) / 15).repeat_interleave(group, 1)[:, :200]
    assert ((rows(weight, rounded) - weight).abs() <= 1.05 * step).all()


@pytest.mark.parametrize("make", [rounding.to_int8, rounding.to_fp8, rounding.to_int4])
def test_zeros_stay_zeros(weight: Tensor, make: object) -> None:
    assert callable(make)
    found = rows(weight, make(weight))
    assert not found[3].any()


def test_many_rows_are_rounded_as_few_are(weight: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = rows(weight, rounding.to_int4(weight))
    monkeypatch.setattr(rounding, "SLICE", 3 * 200)
    torch.testing.assert_close(rows(weight, rounding.to_int4(weight)), whole, rtol=0, atol=0)


def test_fewer_bits_take_less_memory(weight: Tensor) -> None:
    wide = weight.repeat(1, 8)[:, :1024].bfloat16()
    share = {
        make.__name__: make(wide).num_bytes / wide.nbytes
        for make in (rounding.to_int8, rounding.to_fp8, rounding.to_int4)
    }
    assert share["to_int8"] == share["to_fp8"] == pytest.approx(0.5, abs=0.002)
    assert share["to_int4"] == pytest.approx(0.25 + 1 / 32, abs=0.002)
