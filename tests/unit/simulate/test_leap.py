"""Many equal steps at once must leave the very same world as one after the other."""

import random
from dataclasses import replace
from typing import Any

import pytest
from simulated import SIZE, make_setup, make_trace, time_model

from engine.platform import ShapeBuckets
from engine.simulate.model import Windows
from engine.simulate.replica import Outcome, _Replica, simulate_replica
from engine.simulate.trace import TRACE_BLOCK, Trace

BUCKETS = ShapeBuckets(
    tokens=(16, 64, 256), requests=(8,), decodes=(1, 2, 4, 8, 32), blocks=(8, 64, 512)
)


def random_trace(seed: int, *, rate: float, count: int = 60) -> Trace:
    generator, now, requests = random.Random(seed), 0.0, []
    for _ in range(count):
        now += generator.expovariate(rate)
        requests.append((now, generator.randrange(1, 400), generator.randrange(1, 120)))
    return make_trace(*requests)


def shared_trace(seed: int, *, rate: float, count: int = 30) -> Trace:
    """Prompts of one to three blocks, many of which begin alike."""
    generator, now, requests, blocks = random.Random(seed), 0.0, [], []
    for number in range(count):
        now += generator.expovariate(rate)
        ids = (generator.randrange(3), 10 + generator.randrange(3), 100 + number)
        ids = ids[: generator.randrange(1, 4)]
        tokens = (len(ids) - 1) * TRACE_BLOCK + generator.randrange(1, TRACE_BLOCK + 1)
        requests.append((now, tokens, generator.randrange(1, 80)))
        blocks.append(ids)
    return make_trace(*requests, blocks=blocks)


def run(trace: Trace, settings: dict[str, Any], *, leaping: bool) -> tuple[Outcome, dict[str, Any]]:
    """What became of the requests; and all of it that must be equal, the cache included.

    Not the averaged use of the KV cache, which a leap takes in fewer pieces.
    """
    replica = _Replica(make_setup(leaping=leaping, **settings), trace)
    outcome = replica.run()
    found = {name: getattr(outcome, name) for name in outcome.__slots__ if name != "kv_use"}
    found |= {"first_token": list(outcome.first_token), "finished": list(outcome.finished)}
    pool = replica.loop.scheduler.allocator.pool
    if replica.setup.config.prefix_caching:  # else it does not matter which block is which
        evicted = [*reversed(pool._blank), *pool._cached]
        found |= {"next to be evicted": evicted, "cached": pool._hash_of}
    return outcome, found


def both(trace: Trace, **settings: Any) -> Outcome:
    """The same either way; returns it."""
    slow, expected = run(trace, settings, leaping=False)
    fast, found = run(trace, settings, leaping=True)
    assert found == expected
    total = sum(slow.kv_use.values())
    assert sum(fast.kv_use.values()) == pytest.approx(total, rel=0.2)
    return fast


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_a_leap_gives_the_same_times(seed: int, overlap: bool) -> None:
    both(random_trace(seed, rate=8), overlap=overlap)


@pytest.mark.parametrize("overlap", [False, True])
def test_so_it_does_where_requests_are_preempted(overlap: bool) -> None:
    found = both(random_trace(5, rate=100), overlap=overlap, num_blocks=90)
    assert found.preemptions > 0


@pytest.mark.parametrize("overlap", [False, True])
def test_so_it_does_where_many_wait_for_a_place(overlap: bool) -> None:
    both(random_trace(6, rate=100), overlap=overlap, max_requests=5)


def test_so_it_does_where_a_step_holds_hardly_more_than_the_decodes() -> None:
    both(random_trace(7, rate=100), max_batch_tokens=8, max_requests=12)


@pytest.mark.parametrize("overlap", [False, True])
def test_so_it_does_where_prompts_are_cut_to_the_time_they_take(overlap: bool) -> None:
    both(random_trace(12, rate=20), overlap=overlap, step_target_s=0.004)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("num_blocks", [150, 2_000])
def test_so_it_does_with_shared_prefixes(num_blocks: int, overlap: bool) -> None:
    found = both(shared_trace(8, rate=20), overlap=overlap, num_blocks=num_blocks, caching=True)
    assert found.prefix_hits > 0


@pytest.mark.parametrize("overlap", [False, True])
def test_so_it_does_where_a_prompt_fills_its_last_step_and_another_one_waits(
    overlap: bool,
) -> None:
    both(make_trace((0.0, 512, 50), (0.0, 100, 5)), max_batch_tokens=256, overlap=overlap)


def test_so_it_does_where_a_cached_beginning_waits_for_blocks() -> None:
    ids = [(0, 1 + i) for i in range(8)]
    requests = [(0.001 * i, 600, 60) for i in range(8)]
    both(make_trace(*requests, blocks=ids), caching=True, num_blocks=60)


@pytest.mark.parametrize("chunked", [False, True])
def test_so_it_does_where_prompts_and_decodes_have_steps_of_their_own(chunked: bool) -> None:
    both(random_trace(9, rate=20), mixed=False, chunked=chunked, max_model_len=1024)


@pytest.mark.parametrize("mixed", [False, True])
def test_so_it_does_with_static_shapes(mixed: bool) -> None:
    both(random_trace(10, rate=20), buckets=BUCKETS, mixed=mixed)


def test_so_it_does_with_windows() -> None:
    model = time_model(replace(SIZE, windows=(Windows(None, 5), Windows(64, 5))))
    both(random_trace(11, rate=20), model=model)


def test_a_leap_decides_far_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    from engine.scheduler import Scheduler

    decided = 0
    schedule = Scheduler.schedule

    def counting(self: Scheduler) -> Any:
        nonlocal decided
        decided += 1
        return schedule(self)

    monkeypatch.setattr(Scheduler, "schedule", counting)
    outcome = simulate_replica(make_setup(), make_trace((0.0, 20, 500)))
    assert outcome.steps == 500
    assert decided < 10
