"""How much memory the core has on a chip. Of several chips the first stands for all."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import jax

from engine.platform import MemoryProfiler, MemorySnapshot


class ChipMemory(MemoryProfiler):
    """What programs need beside the cache shows when they are made; the cache shrinks where they do
    not fit.

    Args:
        held: bytes of the chip that are in use. Where the device does not tell, all that the core
            does not know of counts as free, and programs have what `cache_share` leaves.
    """

    kind = "compiled"

    def __init__(self, total: int, held: Callable[[], int], cache_share: float) -> None:
        self._total = total
        self._held = held
        self.cache_share = cache_share

    def snapshot(self) -> MemorySnapshot:
        used = min(self._held(), self._total)
        return MemorySnapshot(self._total, self._total - used, used, used)

    def measure(self) -> AbstractContextManager[None]:
        return nullcontext()


def of_arrays(device: jax.Device) -> int:
    """Bytes of all arrays of the process that lie there."""
    shards = (shard for array in jax.live_arrays() for shard in array.addressable_shards)
    return sum(shard.data.nbytes for shard in shards if shard.device == device)
