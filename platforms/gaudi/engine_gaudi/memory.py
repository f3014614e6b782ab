"""Memory as the bridge counts it, less what compiled programs will take."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from engine.platform import MemoryProfiler, MemorySnapshot

#: Share of the device that is left to programs: each keeps its workspace and constants, and
#: nobody knows how much before all of them are made, which is after the cache was sized.
PROGRAMS = 0.1


class DeviceMemory(Protocol):
    """What is asked of `torch.hpu`. Bytes."""

    def mem_get_info(self) -> tuple[int, int]:
        """(free, total)."""

    def memory_allocated(self) -> int: ...

    def max_memory_allocated(self) -> int: ...

    def reset_peak_memory_stats(self) -> None: ...


class HpuMemory(MemoryProfiler):
    """The bridge counts tensors, not what a program needs while it runs: statistics only."""

    kind = "statistics"

    def __init__(self, device: DeviceMemory) -> None:
        self._device = device

    def snapshot(self) -> MemorySnapshot:
        free, total = self._device.mem_get_info()
        reserve = int(total * PROGRAMS)
        used = self._device.memory_allocated()
        return MemorySnapshot(
            total=total - reserve,
            free=max(0, free - reserve),
            used=min(used, total - reserve),
            peak=max(used, self._device.max_memory_allocated()),
        )

    @contextmanager
    def measure(self) -> Iterator[None]:
        self._device.reset_peak_memory_stats()
        yield
