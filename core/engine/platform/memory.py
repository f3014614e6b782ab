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
    #: so the core sets a share of them aside for activations.
    kind: str = "measured"

    @abstractmethod
    def snapshot(self) -> MemorySnapshot: ...

    @abstractmethod
    def measure(self) -> AbstractContextManager[None]:
        """Within the block, `snapshot().peak` counts from the block's start."""

    def release_cached(self) -> None:
        """Return memory the allocator only keeps for reuse."""
