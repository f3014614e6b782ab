"""The parts that the core's model runner uses."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from engine.config import EngineConfig
from engine.errors import UnsupportedError
from engine.platform import (
    AttentionBackend,
    AttentionSpec,
    Capabilities,
    Forward,
    GraphRunner,
    Logits,
    MakeInputs,
    MemoryProfiler,
    MemorySnapshot,
    OpTable,
    Platform,
    StepInputs,
    StepLimits,
)
from engine_frozen_1_4.attention import PackedAttention

MEMORY = 2 * 2**30  # bytes


class AcmeMemory(MemoryProfiler):
    """Half of it is in use, whatever happens."""

    kind = "compiled"

    def snapshot(self) -> MemorySnapshot:
        return MemorySnapshot(total=MEMORY, free=MEMORY // 2, used=MEMORY // 2, peak=MEMORY // 2)

    @contextmanager
    def measure(self) -> Iterator[None]:
        yield


class Programs(GraphRunner):
    """Steps of one token a request make their logits too, in memory that they use again."""

    def __init__(self, limits: StepLimits) -> None:
        self.limits = limits
        self.num_compiled = 0

    def will_project(self, logits: Logits, vocab_size: int) -> None:
        self.project_rows = logits
        self.logits = torch.empty(self.limits.max_requests, vocab_size)

    def reserve(self, activations: int) -> int:
        assert activations >= 0
        return self.logits.nbytes

    def warm_up(self, forward: Forward, make_inputs: MakeInputs) -> None:
        for count in {1, self.limits.max_requests}:
            self.run(forward, make_inputs(count, count))
            self.num_compiled += 1

    def run(self, forward: Forward, inputs: StepInputs) -> Tensor:
        self.last, hidden = None, forward(inputs)
        if inputs.metadata.num_decodes == len(hidden):
            self.logits[: len(hidden)] = self.project_rows(hidden)
            self.last = hidden
        return hidden

    def project_all(self, logits: Logits, hidden: Tensor) -> Tensor:
        return self.logits[: len(hidden)] if hidden is self.last else logits(hidden)

    def report(self) -> str:
        return f"{self.num_compiled} programs, which end with the logits"


class AcmePlatform(Platform):
    name = "frozen_1_4"
    attention_backends = (PackedAttention,)
    capabilities = Capabilities(
        dtypes=("float32", "bfloat16"),
        kv_dtypes=("float32", "bfloat16"),
        block_sizes=(16, 8),
        mixed_batches=True,
        chunked_prefill=True,
        prefix_reuse=True,
        overlap=True,
    )

    def __init__(self, config: EngineConfig, rank: int = 0) -> None:
        super().__init__(config, rank)
        self._limits: StepLimits | None = None

    @property
    def device(self) -> str:
        return "cpu:0"

    def memory(self) -> MemoryProfiler:
        return AcmeMemory()

    def attention(self, spec: AttentionSpec) -> AttentionBackend:
        if reason := PackedAttention.unsupported(spec):
            raise UnsupportedError(f"the Acme NPU's attention: {reason}")
        return PackedAttention(spec, self.device)

    def buckets(self, limits: StepLimits) -> None:
        self._limits = limits

    def graphs(self) -> GraphRunner:
        assert self._limits is not None
        return Programs(self._limits)

    def to_host(self, x: Tensor) -> Callable[[], Tensor]:
        """The copy is made now: what a later step writes into `x` must not show."""
        copy = x.clone()
        return lambda: copy

    def ops(self, table: OpTable) -> None:
        @table.register("silu_and_multiply", source=self.name, priority=10)
        def silu_and_multiply(x: Tensor) -> Tensor:
            gate, up = x.chunk(2, dim=-1)
            return torch.nn.functional.silu(gate) * up
