"""Many replicas. Once requests are routed, replicas know nothing of each other: they are simulated
apart, on as many processes as there are cores, and any number of these gives the same answer."""

import gc
import math
import multiprocessing
import os
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

from engine.errors import ConfigError
from engine.simulate.cost import TimeModel, Work
from engine.simulate.replica import NEVER, Outcome, Setup, simulate_replica
from engine.simulate.routing import ROUTERS
from engine.simulate.trace import Trace

#: Pieces of work for each process: more balance better.
PIECES = 16
#: Requests that are assumed to run beside another, when a router weighs one.
COMPANY = 16


@dataclass(slots=True)
class FleetOutcome:
    """What became of the trace's requests, in its order; seconds, NaN for refused ones."""

    trace: Trace
    replica: "array[int]"
    first_token: "array[float]"
    finished: "array[float]"
    refused: Counter[str] = field(default_factory=Counter)
    gaps: Counter[int] = field(default_factory=Counter)
    kv_use: dict[int, float] = field(default_factory=dict)  # block seconds of all, by period
    tokens: int = 0
    preemptions: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    steps: int = 0
    busy_s: float = 0.0

    @property
    def makespan_s(self) -> float:
        """Until the last request ended."""
        return max((one for one in self.finished if one == one), default=0.0)


def simulate(
    setup: Setup,
    trace: Trace,
    *,
    replicas: int,
    routing: str,
    workers: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> FleetOutcome:
    """Let `replicas` serve the trace. `progress` is told of replicas that are done.

    Raises:
        ConfigError: there is no such routing.
    """
    if routing not in ROUTERS:
        raise ConfigError(f"routing {routing!r} is none of {', '.join(ROUTERS)}")
    chosen = ROUTERS[routing](trace, replicas, _weigh(setup.model))
    places = [array("l") for _ in range(replicas)]
    for number, replica in enumerate(chosen):
        places[replica].append(number)
    nothing = array("d", [NEVER]) * len(trace)
    whole = FleetOutcome(trace, chosen, nothing, nothing[:])
    for replica, outcome in enumerate(_outcomes(setup, trace, places, workers)):
        _merge(whole, places[replica], outcome)
        progress(replica + 1)
    return whole


def _outcomes(
    setup: Setup, trace: Trace, places: Sequence["array[int]"], workers: int | None
) -> Iterator[Outcome]:
    """Each replica's, in order."""
    workers = min(workers or _cores(), len(places))
    if workers == 1:
        for one in places:
            yield simulate_replica(setup, trace.select(one))
        return
    size = math.ceil(len(places) / (workers * PIECES))
    pieces = [places[i : i + size] for i in range(0, len(places), size)]
    parts = ([trace.select(one) for one in piece] for piece in pieces)
    # A fresh process: this one may have threads, which a fork would leave half alive.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_begin) as pool:
        for done in [pool.submit(_simulate_piece, setup, part) for part in parts]:
            yield from done.result()


def _begin() -> None:
    """Cycles are not made here, and looking for them in a million objects takes long."""
    gc.disable()


def _simulate_piece(setup: Setup, parts: Sequence[Trace]) -> list[Outcome]:
    return [simulate_replica(setup, part) for part in parts]


def _merge(whole: FleetOutcome, places: "array[int]", outcome: Outcome) -> None:
    for number, first, last in zip(places, outcome.first_token, outcome.finished, strict=True):
        whole.first_token[number] = first
        whole.finished[number] = last
    whole.refused.update(outcome.refused)
    whole.gaps.update(outcome.gaps)
    for period, held in outcome.kv_use.items():
        whole.kv_use[period] = whole.kv_use.get(period, 0.0) + held
    for name in ("tokens", "preemptions", "prefix_queries", "prefix_hits", "steps", "busy_s"):
        setattr(whole, name, getattr(whole, name) + getattr(outcome, name))


def _weigh(model: TimeModel) -> Callable[[int, int], float]:
    """Seconds that a request keeps a replica busy, when it shares decode steps with some others."""
    layers, tokens = model.size.layers, 1024
    pairs = tokens * (tokens + 1) // 2 * layers
    prefill_s = model.seconds(Work(tokens, 1, 1, tokens * layers, pairs)) / tokens
    decode_s = float(model.decode_seconds([tokens] * COMPANY, 1)[0]) / COMPANY

    def work_s(inputs: int, outputs: int) -> float:
        return inputs * prefill_s + outputs * decode_s

    return work_s


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
