"""How much memory the device has, and how much a piece of work needs."""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MemorySnapshot:
    """Bytes. `total` is what this process may ever use: a container's limit counts."""

    total: int
    free: int
    used: int  # held by this process now
    peak: int  # most this process held since `measure` began, or since its start


class MemoryProfiler(ABC):
    #: "measured": running a step shows its peak. "statistics": the device only reports totals,
    #: so the core sets a share of them aside for activations. "compiled": totals too, and programs
    #: have the cache built in, so what they need beside it shows when they are made; the cache
    #: begins with `cache_share` and shrinks, should they not fit.
    kind: str = "measured"
    #: Of what the engine may use, the most that the cache may take. For devices whose programs need
    #: room that grows with the cache.
    cache_share: float = 1.0

    @abstractmethod
    def snapshot(self) -> MemorySnapshot: ...

    @abstractmethod
    def measure(self) -> AbstractContextManager[None]:
        """Within the block, `snapshot().peak` counts from the block's start."""

    def release_cached(self) -> None:
        """Return memory the allocator only keeps for reuse."""
