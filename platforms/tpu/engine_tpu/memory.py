"""How much memory the core has on a chip. Of several chips the first stands for all."""

from contextlib import AbstractContextManager, nullcontext

import jax

from engine.platform import MemoryProfiler, MemorySnapshot


class ChipMemory(MemoryProfiler):
    """As the device reports it. What programs need beside the cache shows when they are made; the
    cache shrinks where they do not fit."""

    kind = "compiled"
    cache_share = 0.9

    def __init__(self, device: jax.Device) -> None:
        self._device = device

    def snapshot(self) -> MemorySnapshot:
        statistics = self._device.memory_stats() or {}
        total, used = statistics["bytes_limit"], statistics["bytes_in_use"]
        peak = statistics.get("peak_bytes_in_use", used)
        return MemorySnapshot(total, total - used, used, peak)

    def measure(self) -> AbstractContextManager[None]:
        return nullcontext()


class SimulatedMemory(ChipMemory):
    """A chip of so many bytes, of which all arrays of the process are counted."""

    def __init__(self, device: jax.Device, total: int) -> None:
        super().__init__(device)
        self._total = total

    def snapshot(self) -> MemorySnapshot:
        held = [
            shard.data.nbytes
            for array in jax.live_arrays()
            for shard in array.addressable_shards
            if shard.device == self._device
        ]
        used = min(sum(held), self._total)
        return MemorySnapshot(self._total, self._total - used, used, used)


class TotalMemory(MemoryProfiler):
    """Where the device tells what it has and not what is held: all that the core does not know of
    counts as free, and the share that the cache may not have is for programs."""

    kind = "compiled"
    cache_share = 0.7

    def __init__(self, total: int) -> None:
        self._total = total

    def snapshot(self) -> MemorySnapshot:
        return MemorySnapshot(self._total, self._total, 0, 0)

    def measure(self) -> AbstractContextManager[None]:
        return nullcontext()
