import math
import random

import pytest
from simulated import make_setup, make_trace

from engine.errors import ConfigError
from engine.simulate.fleet import FleetOutcome, simulate
from engine.simulate.report import Objectives, make_report, percentiles, table
from engine.simulate.routing import ROUTERS, least_outstanding, round_robin, same_prefix
from engine.simulate.trace import Trace


def mixed_trace(count: int = 60) -> Trace:
    generator = random.Random(4)
    return make_trace(
        *((0.02 * i, generator.randrange(1, 300), generator.randrange(1, 60)) for i in range(count))
    )


def work_s(inputs: int, outputs: int) -> float:
    return inputs / 1000 + outputs / 100


def everything(outcome: FleetOutcome) -> tuple[object, ...]:
    kept = [getattr(outcome, name) for name in outcome.__slots__ if name != "trace"]
    return tuple(one if one == one else None for one in kept)


def test_the_number_of_processes_changes_nothing() -> None:
    run = {"replicas": 6, "routing": "least-tokens"}
    one = simulate(make_setup(), mixed_trace(), workers=1, **run)  # type: ignore[arg-type]
    two = simulate(make_setup(), mixed_trace(), workers=2, **run)  # type: ignore[arg-type]
    assert everything(one) == everything(two)


@pytest.mark.parametrize("routing", ROUTERS)
def test_all_requests_end_wherever_they_are_sent(routing: str) -> None:
    trace = mixed_trace()
    outcome = simulate(make_setup(), trace, replicas=3, routing=routing, workers=1)
    assert not any(map(math.isnan, outcome.finished))
    assert outcome.tokens == sum(trace.outputs)
    assert set(outcome.replica) <= {0, 1, 2}


def test_more_replicas_than_requests_are_idle() -> None:
    outcome = simulate(
        make_setup(), make_trace((0.0, 5, 5)), replicas=9, routing="round-robin", workers=1
    )
    assert outcome.tokens == 5


def test_a_routing_that_does_not_exist_is_refused_with_those_that_do() -> None:
    with pytest.raises(ConfigError, match="least-tokens, round-robin, same-prefix"):
        simulate(make_setup(), mixed_trace(1), replicas=1, routing="by-moon", workers=1)


def test_round_robin_takes_turns() -> None:
    assert list(round_robin(mixed_trace(5), 3, work_s)) == [0, 1, 2, 0, 1]


def test_the_replica_with_the_least_to_do_is_chosen() -> None:
    trace = make_trace((0.0, 10, 500), (0.0, 10, 10), (0.0, 10, 10), (0.0, 10, 10), (99.0, 1, 1))
    assert list(least_outstanding(trace, 2, work_s)) == [0, 1, 1, 1, 1]
    # By 99 s all are idle; the one that was done first is taken.


def test_equal_beginnings_go_to_one_replica() -> None:
    ids = [(0, 1 + i % 7, 100 + i) for i in range(70)]
    trace = make_trace(*((0.0, 1200, 1) for _ in ids), blocks=ids)
    chosen = same_prefix(trace, 5, work_s)
    homes = {
        second: {chosen[i] for i in range(70) if ids[i][1] == second} for second in range(1, 8)
    }
    assert all(len(home) == 1 for home in homes.values())
    assert len(set(chosen)) > 2


def test_more_replicas_make_requests_wait_less() -> None:
    waits = []
    for replicas in (1, 4):
        setup = make_setup()
        outcome = simulate(setup, mixed_trace(), replicas=replicas, routing="round-robin")
        found = make_report(
            outcome, setup, replicas=replicas, devices=replicas, objectives=Objectives(), price=None
        )
        waits.append(found.ttft_s[90])
    assert waits[1] < waits[0]


def test_the_report_adds_up() -> None:
    setup, trace = make_setup(max_model_len=320), mixed_trace()
    outcome = simulate(setup, trace, replicas=2, routing="round-robin", workers=1)
    found = make_report(
        outcome,
        setup,
        replicas=2,
        devices=4,
        objectives=Objectives(ttft_s=0.05, itl_s=0.01),
        price=2.0,
    )
    assert found.completed + sum(found.refused.values()) == found.requests == 60
    done = [i for i, end in enumerate(outcome.finished) if end == end]
    ttft = sorted(outcome.first_token[i] - trace.arrivals[i] for i in done)
    assert found.ttft_s[50] == ttft[math.ceil(len(ttft) / 2) - 1]
    good = 0
    for i in done:
        mean = (outcome.finished[i] - outcome.first_token[i]) / max(1, trace.outputs[i] - 1)
        good += outcome.first_token[i] - trace.arrivals[i] <= 0.05 and mean <= 0.01
    assert found.goodput_share == good / 60
    assert 0 < good < 60, "objectives that sort requests, or the test says nothing"
    assert found.cost == pytest.approx(2.0 * 4 * max(outcome.finished[i] for i in done) / 3600)
    assert 0 < found.busy_share <= 1
    assert all(0 <= share <= 1 for _, share in found.kv_use)
    assert "goodput" in table(found)


def test_percentiles_are_values_that_occurred() -> None:
    assert percentiles(list(range(1, 101))) == {50: 50, 90: 90, 99: 99}
    assert percentiles([3.0]) == {50: 3.0, 90: 3.0, 99: 3.0}
    assert all(map(math.isnan, percentiles([]).values()))
