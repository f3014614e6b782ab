"""Whether the memory profiler tells the truth."""

import time
from collections.abc import Callable

import torch

from engine.platform import MemorySnapshot
from engine.testing.checks.case import Case
from engine.testing.checks.subject import Subject

MIB = 2**20
#: Bytes of the allocation to be seen: large enough to stand out from what else goes on.
VISIBLE = 64 * MIB
#: Bytes that may come and go beside it.
NOISE = 16 * MIB
SNAPSHOT_S = 0.5


def snapshot_adds_up(subject: Subject) -> None:
    """0 < total; free and used are within it; the peak is at least what is used."""
    now = subject.platform.memory().snapshot()
    assert isinstance(now, MemorySnapshot), f"snapshot() returned {now!r}"
    assert now.total > 0, f"the device has no memory: {now}"
    assert 0 <= now.free <= now.total, f"free memory is out of range: {now}"
    assert 0 <= now.used <= now.total, f"used memory is out of range: {now}"
    assert now.peak >= now.used, f"more is used than the peak: {now}"


def snapshot_is_quick(subject: Subject) -> None:
    """It is taken often at start, and by `engine platforms`."""
    memory = subject.platform.memory()
    memory.snapshot()
    began = time.perf_counter()
    memory.snapshot()
    took = time.perf_counter() - began
    assert took < SNAPSHOT_S, f"a snapshot took {took:.2f} s"


def profiler_is_of_a_known_kind(subject: Subject) -> None:
    """The core sizes the cache differently for each."""
    kind = subject.platform.memory().kind
    assert kind in ("measured", "statistics", "compiled"), f"unknown kind of profiler: {kind!r}"
    share = subject.platform.memory().cache_share
    assert 0 < share <= 1, f"the cache may take {share} of the memory"


def measure_sees_an_allocation(subject: Subject) -> float | None:
    """The peak rises by an allocation's size. The error is the difference, as a share of it."""
    memory = subject.platform.memory()
    if memory.kind != "measured":
        return None  # it only reports totals, and says so: there is no peak to be seen
    memory.release_cached()  # or what others gave back would be used again, and nothing rise
    used = memory.snapshot().used
    with memory.measure():
        _allocate(subject)
        rise = memory.snapshot().peak - used
    memory.release_cached()
    return abs(rise - VISIBLE) / VISIBLE


def measure_forgets_an_earlier_peak(subject: Subject) -> None:
    """A block counts from its own start."""
    memory = subject.platform.memory()
    if memory.kind != "measured":
        return
    with memory.measure():
        _allocate(subject)
    memory.release_cached()
    used = memory.snapshot().used
    with memory.measure():
        rise = memory.snapshot().peak - used
    assert rise < VISIBLE - NOISE, f"a block that allocates nothing has a peak of {rise:,} bytes"


def what_is_held_counts_as_used(subject: Subject) -> None:
    """While a tensor lives, `used` includes it."""
    memory = subject.platform.memory()
    if memory.kind != "measured":
        return
    before = memory.snapshot().used
    held = _allocate(subject)
    rise = memory.snapshot().used - before
    del held
    memory.release_cached()
    assert rise >= VISIBLE - NOISE, f"{VISIBLE:,} bytes are held, `used` rose by {rise:,}"


def _allocate(subject: Subject) -> torch.Tensor:
    held = torch.ones(VISIBLE, dtype=torch.uint8, device=subject.platform.device)
    subject.platform.synchronize()
    return held


def _case(
    check: Callable[[Subject], float | None], tolerance: float | None = None, *, wide: bool = False
) -> Case:
    name = check.__name__.replace("_", "-")
    return Case(id=f"memory/{name}", level="memory", check=check, tolerance=tolerance, wide=wide)


CASES = (
    _case(snapshot_adds_up),
    _case(snapshot_is_quick),
    _case(profiler_is_of_a_known_kind),
    _case(measure_sees_an_allocation, NOISE / VISIBLE, wide=True),
    _case(measure_forgets_an_earlier_peak, wide=True),
    _case(what_is_held_counts_as_used, wide=True),
)
