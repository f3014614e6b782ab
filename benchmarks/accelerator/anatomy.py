"""What a decode step consists of: its kernels, and how long the device is busy with them."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from accelerator.records import OURS, Fact, Record, Value
from accelerator.workloads import Workload

#: Kernels that are named, those that take longest first.
NAMED = 12


@dataclass(frozen=True)
class Event:
    """One kernel or copy on the device, microseconds."""

    name: str
    start: float
    stop: float


@dataclass(frozen=True)
class Anatomy:
    """Of one step, the mean over some."""

    events: float
    seconds: float
    busy_share: float
    kernels: tuple[tuple[str, float, float], ...]  # (name, microseconds, times), longest first


def dissect(events: Sequence[Event], steps: int) -> Anatomy:
    """Of events that are `steps` steps and nothing else."""
    ordered = sorted(events, key=lambda one: one.start)
    began, busy, until = ordered[0].start, 0.0, ordered[0].start
    microseconds: dict[str, float] = {}
    times: Counter[str] = Counter()
    for one in ordered:
        busy += max(0.0, one.stop - max(until, one.start))  # what overlaps counts once
        until = max(until, one.stop)
        microseconds[one.name] = microseconds.get(one.name, 0.0) + one.stop - one.start
        times[one.name] += 1
    longest_first = sorted(microseconds.items(), key=lambda one: -one[1])
    kernels = tuple((name, spent / steps, times[name] / steps) for name, spent in longest_first)
    return Anatomy(
        events=len(ordered) / steps,
        seconds=1e-6 * (until - began) / steps,
        busy_share=busy / (until - began),
        kernels=kernels,
    )


def anatomy(
    label: str, run: Callable[[Workload], None], short: Workload, long: Workload
) -> Iterator[Record]:
    """The same prompts with few and with more tokens to make; what the longer run has more of are
    decode steps, and they come last.

    The prompts were seen before, so that both find the same in the prefix cache.
    """
    run(short)
    count = len(_events(run, short))
    events = sorted(_events(run, long), key=lambda one: one.start)
    steps, more = long.outputs[0] - short.outputs[0], len(events) - count
    if more <= 0:
        yield Fact(f"{label}, anatomy of a step", "the profiler saw no kernels")
        return
    found = dissect(events[-more:], steps)
    yield Value(f"{label}, kernels and copies a step", OURS, found.events, "")
    share = 100 * found.busy_share
    yield Value(f"{label}, device busy", OURS, share, "%", higher_is_better=True, floor=100.0)
    yield Fact(f"{label}, a step under the profiler, ms", 1e3 * found.seconds)
    total = sum(spent for _, spent, _ in found.kernels)
    for rank, (name, spent, times) in enumerate(found.kernels[:NAMED], 1):
        yield Fact(
            f"{label}, kernel {rank}",
            f"{spent / total:.1%}, {spent:.1f} us a step, {times:.1f} times: {name[:90]}",
        )


def _events(run: Callable[[Workload], None], workload: Workload) -> list[Event]:
    import torch
    from torch.autograd import DeviceType  # type: ignore[attr-defined]
    from torch.profiler import ProfilerActivity, profile

    on_gpu = torch.cuda.is_available()
    activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiler:
        run(workload)
    return [
        Event(one.name, one.time_range.start, one.time_range.end)
        for one in profiler.events()
        if one.device_type == DeviceType.CUDA
    ]
