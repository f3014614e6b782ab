"""Weights to tokens: exact frequencies, and no token that cannot be."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.ops.draw import CHUNK, chunk_sums, draw
from engine.sampling.rng import uniforms

from .rig import chi_square

SIZES = (1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK + 7)


def draws(weights, count):
    numbers = torch.from_numpy(uniforms(np.full(count, 11, dtype=np.uint64), np.arange(count)))
    return draw(weights.expand(count, -1), numbers).bincount(minlength=len(weights))


@pytest.mark.parametrize("size", SIZES)
def test_chunks_sum_to_the_whole(size):
    weights = torch.rand(3, size, generator=torch.Generator().manual_seed(size))
    expected = weights.double().sum(-1)
    torch.testing.assert_close(chunk_sums(weights).double().sum(-1), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("size", [5, CHUNK, 2 * CHUNK + 7])
def test_tokens_are_drawn_as_often_as_they_weigh(size):
    weights = torch.rand(size, generator=torch.Generator().manual_seed(size)) + 0.5
    assert abs(chi_square(draws(weights, 30_000), weights.double() / weights.double().sum())) < 4


def test_small_weights_beside_a_large_one_are_not_lost():
    # 3e-8 is half a unit in the last place of the sum that a single level would carry along.
    weights = torch.full((21 * CHUNK,), 3e-8)
    weights[:CHUNK] = 0.0
    weights[0] = 1.0
    tail = 20 * CHUNK * 3e-8
    count = 10_000
    first = torch.linspace(1 - 2 * tail, 1 - 2**-24, count)
    second = uniforms(np.full(count, 5, dtype=np.uint64), np.arange(count))[:, 0]
    numbers = torch.stack((first, torch.from_numpy(second)), dim=1)
    drawn = torch.cat([draw(weights.expand(len(part), -1), part) for part in numbers.split(1000)])
    small = drawn[drawn > 0]
    assert len(small) / count == pytest.approx(0.5, abs=0.01)
    assert small.min() >= CHUNK
    assert abs(chi_square((small % 16).bincount(minlength=16), torch.full((16,), 1 / 16))) < 4


@settings(max_examples=100, deadline=None)
@given(
    size=st.sampled_from(SIZES),
    alive=st.integers(1, 5),
    numbers=st.tuples(*[st.sampled_from([0.0, 2.0**-24, 0.5, 1 - 2.0**-24])] * 2),
    seed=st.integers(0, 10**6),
    scale=st.sampled_from([1e-30, 1e-3, 1.0]),
)
def test_a_weight_of_zero_is_never_drawn(size, alive, numbers, seed, scale):
    generator = torch.Generator().manual_seed(seed)
    weights = torch.zeros(1, size)
    at = torch.randint(size, (alive,), generator=generator)
    weights[0, at] = scale * (0.1 + torch.rand(alive, generator=generator))
    token = draw(weights, torch.tensor([numbers], dtype=torch.float32))
    assert weights[0, token] > 0


def test_a_share_that_rounds_up_to_the_whole_still_finds_a_token():
    weight, number = torch.tensor(2.0**-148), torch.tensor(1 - 2**-24)  # subnormal
    assert weight * number == weight
    weights = torch.zeros(1, 3 * CHUNK)
    weights[0, CHUNK + 9] = weight
    assert draw(weights, number.expand(1, 2)).tolist() == [CHUNK + 9]


def test_a_row_that_is_not_a_number_draws_within_the_vocabulary_and_alone():
    weights = torch.rand(3, CHUNK + 7, generator=torch.Generator().manual_seed(1))
    numbers = torch.tensor([[0.3, 0.6]]).expand(3, 2)
    expected = draw(weights, numbers)
    weights[1, 5] = torch.nan
    found = draw(weights, numbers)
    assert 0 <= found[1] < CHUNK + 7
    assert torch.equal(found[[0, 2]], expected[[0, 2]])
