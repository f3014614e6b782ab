"""Faults at the Nth call of a platform's part, once they are armed."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from engine.platform import (
    AttentionBackend,
    EagerRunner,
    Forward,
    GraphRunner,
    KVCache,
    MemoryProfiler,
    MemorySnapshot,
    Packed,
    Prologue,
    StepInputs,
    StepMetadata,
)
from engine.platform.graph import MakeInputs
from engine.testing.checks.driving import MARK
from engine.testing.checks.interposed import AttentionAround, GraphsAround, Parts

Kind: TypeAlias = Literal["raise", "out-of-memory", "nan", "inf", "nan-in-the-first-row"]


@dataclass(slots=True)
class Fault:
    """`point` names a part and its method: "attention.forward"."""

    point: str
    kind: Kind
    at: int = 1  # call, counted from 1 once armed
    armed: bool = False
    fired: bool = False
    _calls: int = field(default=0, init=False)

    def call(self, point: str, function: Callable[[], Any]) -> Any:
        """Call the function, or fail in its place, or spoil the tensor that it returns."""
        if not self._is_now(point):
            return function()
        match self.kind:
            case "raise":
                raise RuntimeError(f"{MARK}: {point} raised")
            case "out-of-memory":
                raise torch.OutOfMemoryError(f"{MARK}: {point} found no memory")
            case _:
                return _spoilt(function(), self.kind)

    @property
    def garbage(self) -> bool:
        """Wrong numbers, not an error."""
        return self.kind in ("nan", "inf", "nan-in-the-first-row")

    @property
    def parts(self) -> Parts:
        """The fault's way into a platform. Attention may be traced into programs, so it is left as
        it is where another part fails: a program could depend on what changes in a fault."""
        attention = self.point.startswith("attention.")
        return Parts(
            attention=lambda part: _FaultyAttention(part, self) if attention else part,
            graphs=lambda part: _FaultyGraphs(self._calling(part), self),
            memory=lambda part: _FaultyMemory(part, self),
        )

    def _calling(self, part: GraphRunner) -> GraphRunner:
        """Eager where attention is to fail in a step: recorded programs call it no more."""
        in_steps = self.point.startswith("attention.") and not self.armed
        return EagerRunner() if in_steps else part

    def _is_now(self, point: str) -> bool:
        if not self.armed or self.fired or point != self.point:
            return False
        self._calls += 1
        self.fired = self._calls == self.at
        return self.fired


class _FaultyAttention(AttentionAround):
    def __init__(self, inner: AttentionBackend, fault: Fault) -> None:
        super().__init__(inner)
        self._fault = fault

    def allocate(self, num_blocks: int) -> KVCache:
        return self._fault.call("attention.allocate", lambda: self.inner.allocate(num_blocks))

    def plan(self, step: StepMetadata) -> Any:
        return self._fault.call("attention.plan", lambda: self.inner.plan(step))

    def forward(
        self, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, cache: KVCache, plan: Any
    ) -> tuple[Tensor, KVCache]:
        def call() -> tuple[Tensor, KVCache]:
            return self.inner.forward(q_THD, k_TKD, v_TKD, cache, plan)

        found: tuple[Tensor, KVCache] = self._fault.call("attention.forward", call)
        return found

    def forward_packed(
        self, packed: Packed, prologue: Prologue, cache: KVCache, plan: Any
    ) -> tuple[Tensor, KVCache]:
        def call() -> tuple[Tensor, KVCache]:
            return self.inner.forward_packed(packed, prologue, cache, plan)

        found: tuple[Tensor, KVCache] = self._fault.call("attention.forward", call)
        return found

    def copy_blocks(self, cache: KVCache, pairs: Sequence[tuple[int, int]]) -> KVCache:
        def call() -> KVCache:
            return self.inner.copy_blocks(cache, pairs)

        return self._fault.call("attention.copy_blocks", call)


class _FaultyGraphs(GraphsAround):
    def __init__(self, inner: GraphRunner, fault: Fault) -> None:
        super().__init__(inner)
        self._fault = fault

    def warm_up(self, forward: Forward, make_inputs: MakeInputs) -> None:
        self._fault.call("graphs.warm_up", lambda: self.inner.warm_up(forward, make_inputs))

    def run(self, forward: Forward, inputs: StepInputs) -> Tensor:
        found: Tensor = self._fault.call("graphs.run", lambda: self.inner.run(forward, inputs))
        return found


class _FaultyMemory(MemoryProfiler):
    def __init__(self, inner: MemoryProfiler, fault: Fault) -> None:
        self.kind = inner.kind
        self._inner = inner
        self._fault = fault

    def snapshot(self) -> MemorySnapshot:
        found: MemorySnapshot = self._fault.call("memory.snapshot", self._inner.snapshot)
        return found

    @contextmanager
    def measure(self) -> Iterator[None]:
        with self._inner.measure():
            yield

    def release_cached(self) -> None:
        self._inner.release_cached()


def _spoilt(found: Any, kind: str) -> Any:
    """The tensor, which may come with a cache, full of what is no number; the cache as it is."""
    if isinstance(found, tuple):
        tensor, cache = found
        return _spoilt(tensor, kind), cache
    if kind == "nan-in-the-first-row":
        spoilt = found.clone()
        spoilt[0] = float("nan")
        return spoilt
    return torch.full_like(found, float(kind))
