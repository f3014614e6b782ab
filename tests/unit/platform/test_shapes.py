"""Buckets against brute force."""

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import ConfigError
from engine.platform import Load, Shape, ShapeBuckets, StepLimits

LIMITS = StepLimits(max_tokens=256, max_requests=8, max_model_len=100, block_size=16)


def buckets(tokens=(16, 128, 256), requests=(8,), decodes=(1, 4, 8), blocks=(4, 7), **settings):
    return ShapeBuckets(
        tokens=tokens, requests=requests, decodes=decodes, blocks=blocks, **settings
    )


def ascending(most, max_size=4):
    sizes = st.lists(st.integers(1, most), min_size=1, max_size=max_size, unique=True)
    return sizes.map(lambda found: tuple(sorted(found)))


def test_sizes_double_up_to_the_limits_themselves():
    found = ShapeBuckets.doubling(LIMITS)
    assert found.tokens == (16, 32, 64, 128, 256)
    assert found.decodes == (1, 2, 4, 8)
    assert found.requests == (8,)
    assert found.blocks == (4, 7)
    found.check(LIMITS, whole_prompts=True)


def test_limits_below_the_smallest_bucket_are_the_only_one():
    small = StepLimits(max_tokens=5, max_requests=1, max_model_len=20, block_size=16)
    found = ShapeBuckets.doubling(small)
    assert (found.tokens, found.decodes, found.blocks) == ((5,), (1,), (2,))


@pytest.mark.parametrize("sizes", [(), (0, 4), (8, 4), (4, 4)])
def test_sizes_that_are_no_buckets_are_refused(sizes):
    with pytest.raises(ConfigError, match="buckets of decodes"):
        buckets(decodes=sizes)


def test_a_context_without_a_bucket_is_refused():
    with pytest.raises(ConfigError, match="max_model_len 100 needs 7"):
        buckets(blocks=(4,)).check(LIMITS, whole_prompts=False)
    with pytest.raises(ConfigError, match="prompts whole"):
        buckets(tokens=(64,)).check(LIMITS, whole_prompts=True)
    buckets(tokens=(64,)).check(LIMITS, whole_prompts=False)


def test_every_combination_is_a_program_and_the_largest_comes_first():
    found = buckets().shapes()
    assert len(found) == len(set(found)) == 3 * 2 + 3 * 2
    assert found[0] == Shape(256, 8, 7)
    assert Shape(4, 4, 7, decode=True) in found


@given(
    tokens=st.integers(1, 300),
    requests=st.integers(1, 10),
    blocks=st.integers(1, 9),
    decode=st.booleans(),
)
def test_a_step_takes_the_cheapest_program_that_holds_it(tokens, requests, blocks, decode):
    one = buckets()
    found = one.fit(tokens, requests, blocks, decode=decode)
    holding = [
        shape
        for shape in one.shapes()
        if shape.decode == decode
        and (shape.tokens >= tokens and shape.requests >= requests and shape.blocks >= blocks)
    ]
    if not holding:
        assert found is None
    else:
        assert found in holding
        assert one.cost(found) == min(map(one.cost, holding))
        assert all(found.blocks <= other.blocks for other in holding)


def test_129_tokens_are_128_and_then_1_where_that_is_cheaper():
    assert buckets(step_cost=0).fill(129) == 128
    assert buckets(step_cost=100).fill(129) == 128  # 228 + 116 tokens' worth, against 356
    assert buckets(step_cost=120).fill(129) == 129  # 248 + 136, against 376
    assert buckets(tokens=(256,)).fill(129) == 129


def test_more_than_the_largest_bucket_fills_it():
    assert buckets().fill(10_000) == 256


@given(
    sizes=ascending(60),
    step_cost=st.integers(0, 40),
    demand=st.integers(1, 90),
)
def test_filling_costs_no_more_than_any_other_way(sizes, step_cost, demand):
    one = buckets(tokens=sizes, step_cost=step_cost)
    demand = min(demand, sizes[-1])

    @cache
    def least(rest):
        if rest <= 0:
            return 0
        return min(size + step_cost + least(rest - size) for size in sizes)

    def cost_of_filling(rest):
        total = 0
        while rest > 0:
            step = one.fill(rest)
            assert 0 < step <= rest
            total += one.cost(one.fit(step, 1, 1, decode=False))
            rest -= step
        return total

    assert cost_of_filling(demand) == least(demand)


def test_a_platform_may_count_padding_otherwise():
    class Quadratic(ShapeBuckets):
        def cost(self, shape):
            return shape.tokens**2

    sizes = {"requests": (8,), "decodes": (8,), "blocks": (7,)}
    assert Quadratic(tokens=(16, 64), **sizes).fill(50) == 16


def test_loads_add_up():
    assert sum([Load(1, 10, 2), Load(1, 5, 1)], Load()) == Load(2, 15, 3)
