"""A platform whose parts pass through the kit's hands, which look at calls or spoil them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from engine.platform import (
    AttentionBackend,
    AttentionSpec,
    Communicator,
    Forward,
    GraphRunner,
    KVCache,
    KVLayout,
    MemoryProfiler,
    OpTable,
    Packed,
    Platform,
    PlatformSpec,
    Prologue,
    Runner,
    ShapeBuckets,
    StepInputs,
    StepLimits,
    StepMetadata,
)
from engine.platform.graph import Logits, MakeInputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What becomes of each part that the platform hands out. Left out: nothing."""

    attention: Callable[[AttentionBackend], AttentionBackend] = lambda part: part
    graphs: Callable[[GraphRunner], GraphRunner] = lambda part: part
    memory: Callable[[MemoryProfiler], MemoryProfiler] = lambda part: part
    communicator: Callable[[Communicator], Communicator] = lambda part: part
    buckets: Callable[[ShapeBuckets | None], ShapeBuckets | None] = lambda part: part


def interpose(spec: PlatformSpec, parts: Parts) -> PlatformSpec:
    """The spec, its platforms made as before and then wrapped."""
    return replace(spec, create=lambda config, rank: Interposed(spec.create(config, rank), parts))


class Interposed(Platform):
    """Another platform, behind `Parts`."""

    def __init__(self, inner: Platform, parts: Parts) -> None:
        super().__init__(inner.config, inner.rank)
        self.name = inner.name
        self.capabilities = inner.capabilities
        self.attention_backends = inner.attention_backends
        self._inner = inner
        self._parts = parts

    @property
    def device(self) -> str:
        return self._inner.device

    def memory(self) -> MemoryProfiler:
        return self._parts.memory(self._inner.memory())

    def attention(self, spec: AttentionSpec) -> AttentionBackend:
        return self._parts.attention(self._inner.attention(spec))

    def communicator(self, ranks: tuple[int, ...]) -> Communicator:
        return self._parts.communicator(self._inner.communicator(ranks))

    def graphs(self) -> GraphRunner:
        return self._parts.graphs(self._inner.graphs())

    def buckets(self, limits: StepLimits) -> ShapeBuckets | None:
        return self._parts.buckets(self._inner.buckets(limits))

    def ops(self, table: OpTable) -> None:
        self._inner.ops(table)

    def runner(self) -> Runner | None:
        return self._inner.runner()

    def to_host(self, x: Tensor) -> Callable[[], Tensor]:
        return self._inner.to_host(x)

    def synchronize(self) -> None:
        self._inner.synchronize()

    def close(self) -> None:
        self._inner.close()


class AttentionAround(AttentionBackend):
    """Passes everything on. Subclasses do something beside it."""

    def __init__(self, inner: AttentionBackend) -> None:
        super().__init__(inner.spec, inner.device)
        self.inner = inner

    @classmethod
    def unsupported(cls, spec: AttentionSpec) -> str | None:
        raise AssertionError("asked of the platform's own backends")

    def kv_layout(self) -> KVLayout:
        return self.inner.kv_layout()

    def allocate(self, num_blocks: int) -> KVCache:
        return self.inner.allocate(num_blocks)

    def plan(self, step: StepMetadata) -> Any:
        return self.inner.plan(step)

    def forward(
        self, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, cache: KVCache, plan: Any
    ) -> tuple[Tensor, KVCache]:
        return self.inner.forward(q_THD, k_TKD, v_TKD, cache, plan)

    def fuses(self, prologue: Prologue) -> bool:
        return self.inner.fuses(prologue)

    def forward_packed(
        self, packed: Packed, prologue: Prologue, cache: KVCache, plan: Any
    ) -> tuple[Tensor, KVCache]:
        return self.inner.forward_packed(packed, prologue, cache, plan)

    def copy_blocks(self, cache: KVCache, pairs: Sequence[tuple[int, int]]) -> KVCache:
        return self.inner.copy_blocks(cache, pairs)


class GraphsAround(GraphRunner):
    """Passes everything on. Subclasses do something beside it."""

    def __init__(self, inner: GraphRunner) -> None:
        self.inner = inner

    @property
    def num_compiled(self) -> int:  # type: ignore[override]  # the inner one's, as it is now
        return self.inner.num_compiled

    def warm_up(self, forward: Forward, make_inputs: MakeInputs) -> None:
        self.inner.warm_up(forward, make_inputs)

    def run(self, forward: Forward, inputs: StepInputs) -> Tensor:
        return self.inner.run(forward, inputs)

    def will_project(self, logits: Logits, vocab_size: int) -> None:
        self.inner.will_project(logits, vocab_size)

    def reserve(self, activations: int) -> int:
        return self.inner.reserve(activations)

    def project(self, logits: Logits, hidden: Tensor, rows: Tensor) -> Tensor:
        return self.inner.project(logits, hidden, rows)

    def project_all(self, logits: Logits, hidden: Tensor) -> Tensor:
        return self.inner.project_all(logits, hidden)

    def report(self) -> str:
        return self.inner.report()

    def close(self) -> None:
        self.inner.close()
