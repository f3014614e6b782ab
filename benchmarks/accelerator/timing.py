"""How long one call takes on a device, in the way that a captured step sees it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch

Call = Callable[[], object]

#: Calls in one graph, at least; what surrounds a replay is spread over them.
IN_A_GRAPH = 20
REPLAYS = 5
#: Of what is read, in sum over the calls that take turns: more than any cache keeps.
CACHE_BYTES = 512 << 20


@dataclass(frozen=True)
class Timed:
    seconds: float
    captured: bool  # False: the host launched each call, and its time may be in the number


def turns(bytes_read: float, most: int = 16) -> int:
    """How many equal sets of inputs have to take turns, so that none is still in a cache."""
    return max(1, min(most, -(-CACHE_BYTES // max(1, int(bytes_read)))))


def time_calls(calls: Sequence[Call], device: str) -> Timed:
    """Seconds of one call, the median of some replays; the calls take turns.

    On a GPU a graph holds all of them. What cannot be captured is launched one by one.
    """
    for call in calls:
        call()
    if torch.device(device).type == "cpu":
        return Timed(_clocked(calls), captured=False)
    torch.cuda.synchronize(device)
    rounds = -(-IN_A_GRAPH // len(calls))
    try:
        replay = _captured(calls, rounds, device)
    except RuntimeError:
        torch.cuda.synchronize(device)  # raises where the device itself is broken
        return Timed(_between_events(lambda: _run(calls, rounds)) / (rounds * len(calls)), False)
    return Timed(_between_events(replay) / (rounds * len(calls)), captured=True)


def time_host(call: Call, synchronize: Call, times: int = 3) -> float:
    """Seconds by the host's clock until the device is done; the median."""
    found = []
    for _ in range(times):
        synchronize()
        began = time.perf_counter()
        call()
        synchronize()
        found.append(time.perf_counter() - began)
    return median(found)


def _captured(calls: Sequence[Call], rounds: int, device: str) -> Call:
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    graph = torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        _run(calls, 1)  # what is lazy on a new stream happens here
    torch.cuda.synchronize(device)
    with torch.cuda.graph(graph, stream=stream):
        _run(calls, rounds)
    graph.replay()
    torch.cuda.synchronize(device)
    return graph.replay


def _run(calls: Sequence[Call], rounds: int) -> None:
    for _ in range(rounds):
        for call in calls:
            call()


def _between_events(run: Call) -> float:
    seconds: list[float] = []
    for _ in range(REPLAYS):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        run()
        stop.record()
        stop.synchronize()
        seconds.append(start.elapsed_time(stop) / 1e3)
    return median(seconds)


def _clocked(calls: Sequence[Call]) -> float:
    began = time.perf_counter()
    for call in calls:
        call()
    return (time.perf_counter() - began) / len(calls)
