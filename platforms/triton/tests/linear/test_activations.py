"""Activations rounded to fp8, against torch's rounding."""

from dataclasses import replace

import pytest
import torch

from engine_triton.architecture import Architecture
from engine_triton.linear.activations import DTYPES, Rounding
from engine_triton.linear.rounding import in_groups


@pytest.mark.parametrize("fp8", DTYPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("group", [None, 128])
def test_levels_and_scales_are_those_of_the_largest_magnitude(
    architecture: Architecture, fp8: str, dtype: torch.dtype, group: int | None
) -> None:
    random = torch.Generator().manual_seed(3)
    x = torch.randn(5, 400, generator=random).to(dtype)[:, 50:350]  # rows lie apart
    x[2] = 0
    made = Rounding(replace(architecture, fp8=fp8), group)(x)
    groups = in_groups(x.float(), group or 300)
    scales = groups.abs().amax(-1) / torch.finfo(DTYPES[fp8]).max
    scales[scales == 0] = 1
    levels = (groups / scales[..., None]).to(DTYPES[fp8]).flatten(1)[:, :300]
    torch.testing.assert_close(made.scales, scales.view(made.scales.shape), rtol=1e-6, atol=0)
    assert made.levels.dtype == DTYPES[fp8]
    torch.testing.assert_close(made.levels.float(), levels.float(), rtol=0, atol=0)


def test_no_rows_give_no_rows(architecture: Architecture) -> None:
    made = Rounding(architecture, 128)(torch.empty(0, 300))
    assert made.levels.shape == (0, 300)
    assert made.scales.shape == (0, 3)
