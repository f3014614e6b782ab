"""How K is divided."""

import pytest
import torch

from engine_triton.linear.parts import FEWEST_STEPS, MOST_PARTS, Parts, add_parts


def test_many_features_keep_all_processors_busy_without_parts() -> None:
    assert Parts.of(programs=1000, blocks_of_k=64, processors=132) == Parts(1, 64)


def test_few_features_are_divided_until_processors_are_busy() -> None:
    parts = Parts.of(programs=32, blocks_of_k=64, processors=132)
    assert parts == Parts(8, 8)


@pytest.mark.parametrize("blocks", [1, 2, 7, 33, 500])
@pytest.mark.parametrize("programs", [1, 40, 131])
def test_parts_cover_k_none_is_empty_and_none_too_short(blocks: int, programs: int) -> None:
    parts = Parts.of(programs, blocks, processors=132)
    assert parts.count * parts.steps >= blocks > (parts.count - 1) * parts.steps
    assert 1 <= parts.count <= MOST_PARTS
    assert parts.count == 1 or parts.steps >= FEWEST_STEPS


def test_parts_and_bias_are_added_in_float32() -> None:
    random = torch.Generator().manual_seed(0)
    parts = torch.randn(3, 5, 700, generator=random)
    bias = torch.randn(700, generator=random).bfloat16()
    out = torch.full((5, 700), torch.nan)
    add_parts(parts, bias, out)
    torch.testing.assert_close(out.double(), parts.double().sum(0) + bias, rtol=1e-6, atol=1e-6)
