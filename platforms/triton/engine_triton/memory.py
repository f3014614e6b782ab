"""How much memory the GPU has, and how much a piece of work needs.

|------------------------------------ device total ------------------------------------|
|-- other processes --|-- used: ours beside torch | held by torch's allocator --|-free-|
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from engine.platform import MemoryProfiler, MemorySnapshot
from engine_triton.device import Device


class DeviceMemory(MemoryProfiler):
    """What the allocator holds counts, not what tensors fill of it: its gaps are lost to the cache.

    Args:
        own: bytes that the driver counts for this process, what torch does not know of among them:
            its context, libraries, captured programs; None where the driver does not tell. They
            then count as other processes'.
    """

    kind = "measured"

    def __init__(self, device: Device, own: Callable[[], int | None] = lambda: None) -> None:
        self._device = device
        self._own = own

    def snapshot(self) -> MemorySnapshot:
        free, total = self._device.memory()
        now, peak = self._device.reserved()
        beside = max(0, (self._own() or 0) - now)
        used = min(now + beside, total)
        return MemorySnapshot(total, min(free, total), used, max(used, peak + beside))

    @contextmanager
    def measure(self) -> Iterator[None]:
        self._device.forget_peak()
        yield

    def release_cached(self) -> None:
        self._device.release_cached()
