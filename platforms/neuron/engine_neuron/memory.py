"""How much memory the core has.

|------------------------ device total ------------------------|
|-- held by the allocator, for this process --|----- free -----|
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from engine.platform import MemoryProfiler, MemorySnapshot


class Calls(Protocol):
    """Of `torch_neuronx`, what is asked here. Bytes."""

    def synchronize(self) -> None: ...
    def total_memory(self) -> int: ...
    def memory_reserved(self) -> int: ...
    def max_memory_reserved(self) -> int: ...
    def empty_cache(self) -> None: ...


class DeviceCalls:
    """Those of the vendor's module, of this process's own core."""

    def __init__(self) -> None:
        from importlib import import_module

        self._torch_neuronx = import_module("torch_neuronx")

    def synchronize(self) -> None:
        self._torch_neuronx.synchronize()

    def total_memory(self) -> int:
        return int(self._torch_neuronx.get_device_properties(0).total_memory)

    def memory_reserved(self) -> int:
        return int(self._torch_neuronx.memory_reserved(0))

    def max_memory_reserved(self) -> int:
        return int(self._torch_neuronx.max_memory_reserved(0))

    def empty_cache(self) -> None:
        self._torch_neuronx.empty_cache()


class NeuronMemory(MemoryProfiler):
    """The cache is part of each program's memory plan, so a step cannot be measured before its size
    is decided."""

    kind = "compiled"
    #: What the vendor's own server gives it; the rest is for weights and for programs.
    cache_share = 0.30

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    def snapshot(self) -> MemorySnapshot:
        """The allocator is asynchronous: what was started must have ended."""
        calls = self._calls
        calls.synchronize()
        total = calls.total_memory()
        used = min(calls.memory_reserved(), total)
        return MemorySnapshot(total, total - used, used, max(used, calls.max_memory_reserved()))

    def measure(self) -> AbstractContextManager[None]:
        return nullcontext()

    def release_cached(self) -> None:
        self._calls.empty_cache()
