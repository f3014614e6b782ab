import math

import pytest
from simulated import make_setup, make_trace, time_model

from engine.batch import Batch, Slice
from engine.simulate.replica import gap_bin, gap_of, simulate_replica
from engine.simulate.trace import TRACE_BLOCK


def prefill_s(tokens: int) -> float:
    model = time_model()
    return model.seconds(model.work(Batch(slices=(Slice(1, 0, tokens, True),))))


@pytest.mark.parametrize("leaping", [False, True])
@pytest.mark.parametrize("overlap", [False, True])
def test_a_request_alone_takes_the_sum_of_its_steps(leaping: bool, overlap: bool) -> None:
    outcome = simulate_replica(
        make_setup(leaping=leaping, overlap=overlap), make_trace((2.0, 100, 30))
    )
    first = 2.0 + prefill_s(100)
    rest = time_model().decode_seconds([101], 29).sum()
    assert outcome.first_token[0] == pytest.approx(first, rel=1e-12)
    assert outcome.finished[0] == pytest.approx(first + rest, rel=1e-12)


def test_no_token_comes_before_its_request_and_its_prompt() -> None:
    requests = [(0.003 * i, 10 + 7 * i, 1 + i % 13) for i in range(40)]
    outcome = simulate_replica(make_setup(), make_trace(*requests))
    for i, (arrival, inputs, outputs) in enumerate(requests):
        assert outcome.first_token[i] >= arrival + prefill_s(inputs)
        least = (outputs - 1) * time_model().decode_seconds([inputs], 1)[0]
        assert outcome.finished[i] >= outcome.first_token[i] + least - 1e-12


def test_every_request_ends_once_with_its_tokens() -> None:
    requests = [(0.01 * i, 5 + i, 1 + i) for i in range(30)]
    outcome = simulate_replica(make_setup(), make_trace(*requests))
    assert not any(math.isnan(end) for end in outcome.finished)
    assert outcome.tokens == sum(outputs for _, _, outputs in requests)
    assert sum(outcome.gaps.values()) == outcome.tokens - len(requests)


def test_the_device_is_never_busy_longer_than_the_time_that_passed() -> None:
    requests = [(0.5 * i, 50, 20) for i in range(10)]
    outcome = simulate_replica(make_setup(), make_trace(*requests))
    assert 0 < outcome.busy_s < max(outcome.finished)


def test_what_can_never_fit_is_refused_and_counted() -> None:
    outcome = simulate_replica(
        make_setup(num_blocks=10, max_model_len=500),
        make_trace((0.0, 400, 200), (0.0, 100, 100), (0.1, 10, 10)),
    )
    assert outcome.refused == {"longer than the context": 1, "larger than the KV cache": 1}
    assert [math.isnan(end) for end in outcome.finished] == [True, True, False]


def test_a_shared_beginning_is_found_in_the_cache_and_saves_time() -> None:
    ids = [(1, 2, 3), (1, 2, 4)]
    requests = [(0.0, 3 * TRACE_BLOCK, 2), (50.0, 3 * TRACE_BLOCK, 2)]
    outcome = simulate_replica(make_setup(caching=True), make_trace(*requests, blocks=ids))
    assert outcome.prefix_hits == 2 * TRACE_BLOCK
    assert outcome.prefix_queries == 6 * TRACE_BLOCK
    assert outcome.first_token[1] - 50.0 < outcome.first_token[0] / 2


def test_blocks_are_held_while_a_request_runs() -> None:
    outcome = simulate_replica(make_setup(leaping=False), make_trace((0.0, 160, 5)))
    blocks_s = sum(outcome.kv_use.values())
    assert 10 * outcome.first_token[0] <= blocks_s * 1.5
    assert blocks_s <= 11 * outcome.finished[0]


@pytest.mark.parametrize("gap_s", [1e-9, 1e-6, 0.00372, 0.25, 17.0, 1e6])
def test_a_bin_keeps_a_gap_to_a_percent(gap_s: float) -> None:
    kept = gap_of(gap_bin(gap_s))
    if 1e-6 < gap_s < 1e4:
        assert kept == pytest.approx(gap_s, rel=0.01)
    assert gap_bin(gap_s * 1.02) >= gap_bin(gap_s)
