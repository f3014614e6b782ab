"""Prompts are cut so that those who decode beside them wait no longer than they should."""

import math
import sys
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated import make_setup, make_trace, time_model

from engine.batch import Batch, Slice
from engine.pace import LEAST_TOKENS, Pace
from engine.platform import ShapeBuckets
from engine.simulate.replica import gap_of, simulate_replica

#: Arrival, input and output tokens: one decodes when two long prompts arrive.
LONG = ((0.0, 100, 600), (0.1, 16_000, 4), (0.1, 16_000, 4))


def batch(prompts: Sequence[int], decodes: int = 0) -> Batch:
    counts = [*prompts, *[1] * decodes]
    return Batch(slices=tuple(Slice(key, 0, count, False) for key, count in enumerate(counts)))


def long_waits(over_s: float, **settings: Any) -> int:
    """How many times the one who decodes beside long prompts waited so long for a token."""
    setup = make_setup(max_batch_tokens=2048, max_model_len=20_000, num_blocks=4_000, **settings)
    gaps = simulate_replica(setup, make_trace(*LONG)).gaps
    return sum(count for number, count in gaps.items() if gap_of(number) > over_s)


@pytest.mark.parametrize("target", [None, 0, 0.0])
def test_without_a_target_nothing_is_limited(target: float | None) -> None:
    pace = Pace(target)
    pace.observe(batch([2048]), 100.0)
    assert pace.limit == sys.maxsize


def test_before_the_first_prompt_nothing_is_limited() -> None:
    pace = Pace(0.25)
    pace.observe(batch([], decodes=8), 0.2)
    assert pace.limit == sys.maxsize


@given(fixed=st.floats(0, 0.12), each=st.floats(1e-5, 2e-3), first=st.integers(2, 2048))
def test_steps_come_to_take_what_they_should(fixed: float, each: float, first: int) -> None:
    pace = Pace(0.25)
    tokens = first
    for _ in range(60):
        seconds = fixed + each * tokens
        pace.observe(batch([tokens], decodes=4), seconds)
        tokens = pace.limit
    assert fixed + each * tokens == pytest.approx(0.25, rel=0.05, abs=2 * each)


def test_a_prompt_goes_on_where_decoding_alone_takes_longer() -> None:
    pace = Pace(0.25)
    for _ in range(20):
        pace.observe(batch([pace.limit if pace.limit < 999 else 64], decodes=64), 1.0)
    assert pace.limit == LEAST_TOKENS


def test_the_small_rest_of_a_prompt_says_nothing_against_more() -> None:
    pace = Pace(0.25)
    pace.observe(batch([100]), 0.25)
    pace.observe(batch([2], decodes=8), 0.1)
    assert pace.limit == 100


def test_one_disturbed_step_is_soon_forgotten() -> None:
    pace = Pace(0.25)
    pace.observe(batch([100]), 0.25)
    pace.observe(batch([100]), 2.5)
    assert pace.limit < 50
    for _ in range(8):
        pace.observe(batch([pace.limit]), pace.limit / 400)
    assert pace.limit == pytest.approx(100, rel=0.05)


@pytest.mark.parametrize("overlap", [False, True])
def test_who_decodes_does_not_wait_for_whole_prompts(overlap: bool) -> None:
    """But for a few steps, when prompts become much longer than those it has learned from."""
    assert long_waits(0.15, overlap=overlap) > 10
    assert long_waits(0.15, overlap=overlap, step_target_s=0.1) <= 1 + 4 * overlap


def test_on_static_shapes_smaller_buckets_are_filled() -> None:
    buckets = ShapeBuckets(
        tokens=(16, 64, 256, 2048), requests=(8,), decodes=(1, 2, 4, 8), blocks=(64, 256, 1024)
    )
    static = {"buckets": buckets, "model": time_model(buckets=buckets)}
    assert long_waits(0.3, **static) > 10
    assert long_waits(0.3, **static, step_target_s=0.1) <= 2


def test_where_prompts_cannot_be_cut_they_are_computed_whole() -> None:
    setup = make_setup(chunked=False, max_batch_tokens=2048, step_target_s=0.001)
    outcome = simulate_replica(setup, make_trace((0.0, 100, 50), (0.01, 1500, 4)))
    assert not any(map(math.isnan, outcome.finished))
