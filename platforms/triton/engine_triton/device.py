"""What a platform asks of its GPU: a torch device with streams, graphs and a caching allocator."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Recording:
    """Work that was captured. `replay` starts it again on the current stream: it reads and writes
    the same memory, `result` among it, so a result is good until the next replay."""

    replay: Callable[[], None]
    result: Tensor


class Device(ABC):
    """One GPU. Bytes."""

    name: str  # as torch spells it, with an index

    @abstractmethod
    def synchronize(self) -> None:
        """Wait for all work that was started so far."""

    @abstractmethod
    def memory(self) -> tuple[int, int]:
        """(free, total) of the whole device, as its driver says."""

    @abstractmethod
    def reserved(self) -> tuple[int, int]:
        """(now, at the peak) what torch's allocator holds for this process, in use or not."""

    @abstractmethod
    def forget_peak(self) -> None: ...

    @abstractmethod
    def release_cached(self) -> None:
        """Return to the driver what the allocator only keeps for reuse."""

    @abstractmethod
    def to_host(self, x: Tensor) -> Callable[[], Tensor]:
        """Start to copy; what is returned waits for that copy, for nothing that was started after
        it, and returns it."""

    @abstractmethod
    def capture(self, work: Callable[[], Tensor]) -> Recording:
        """Record what `work` starts, without doing it. Recordings share their memory: only results
        are kept apart.

        Raises:
            RuntimeError: something in it cannot be recorded, or there is not enough memory.
        """


class TorchDevice(Device):
    """
    Args:
        kind: the type of device, as torch spells it.
        graph: torch's class of a graph of such a device.
    """

    def __init__(self, kind: str, index: int, graph: Callable[[], Any]) -> None:
        self.name = f"{kind}:{index}"
        self._index = index
        self._graph = graph
        self._module: ModuleType = torch.get_device_module(kind)
        self._module.set_device(index)  # where kernels are launched that name no device
        self._pool: Any = None

    def synchronize(self) -> None:
        self._module.synchronize(self._index)

    def memory(self) -> tuple[int, int]:
        free, total = self._module.mem_get_info(self._index)
        return free, total

    def reserved(self) -> tuple[int, int]:
        module = self._module
        return module.memory_reserved(self._index), module.max_memory_reserved(self._index)

    def forget_peak(self) -> None:
        self._module.reset_peak_memory_stats(self._index)

    def release_cached(self) -> None:
        self._module.empty_cache()

    def to_host(self, x: Tensor) -> Callable[[], Tensor]:
        """The allocator of pinned memory keeps the buffer until the copy is done, and reuses it."""
        copy = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
        copy.copy_(x, non_blocking=True)
        done = self._module.Event()
        done.record()

        def wait() -> Tensor:
            done.synchronize()
            return copy

        return wait

    def capture(self, work: Callable[[], Tensor]) -> Recording:
        """Errors of other threads' calls do not end a capture ("thread_local"): collectives have a
        thread of their own that looks after them."""
        module = self._module
        if self._pool is None:
            self._pool = module.graph_pool_handle()
        graph, stream = self._graph(), module.current_stream()
        try:
            with module.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                result = work()
        except BaseException:
            module.set_stream(stream)  # torch stays on its own one when a capture cannot be ended
            raise
        return Recording(graph.replay, result)
