"""The parts that the core's model runner uses."""

from collections.abc import Iterator
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
    ShapeBuckets,
    StepInputs,
    StepLimits,
)
from engine_frozen_1_2.attention import WholeBucketAttention

MEMORY = 2 * 2**30  # bytes


class AcmeMemory(MemoryProfiler):
    """Half of it is in use, whatever happens."""

    kind = "compiled"
    cache_share = 0.25

    def snapshot(self) -> MemorySnapshot:
        return MemorySnapshot(total=MEMORY, free=MEMORY // 2, used=MEMORY // 2, peak=MEMORY // 2)

    @contextmanager
    def measure(self) -> Iterator[None]:
        yield


class Programs(GraphRunner):
    """Has a program for each shape that the buckets name, and refuses any other step."""

    def __init__(self, buckets: ShapeBuckets) -> None:
        self.buckets = buckets
        self.num_compiled = 0
        self._made: set[tuple[int, ...]] = set()
        self._warm = False

    def warm_up(self, forward: Forward, make_inputs: MakeInputs) -> None:
        for shape in self.buckets.shapes():
            self.run(forward, make_inputs(shape.requests, shape.tokens, shape))
        self._warm = True

    def run(self, forward: Forward, inputs: StepInputs) -> Tensor:
        shape = (len(inputs.input_ids), *inputs.metadata.block_table.shape)
        if shape not in self._made:
            if self._warm:
                raise RuntimeError(f"there is no program for {shape}")
            self._made.add(shape)
            self.num_compiled += 1
        return forward(inputs)

    def project(self, logits: Logits, hidden: Tensor, rows: Tensor) -> Tensor:
        return logits(hidden[rows])


class AcmePlatform(Platform):
    name = "frozen_1_2"
    attention_backends = (WholeBucketAttention,)
    capabilities = Capabilities(
        dtypes=("float32", "bfloat16"),
        kv_dtypes=("float32", "bfloat16"),
        block_sizes=(16, 8),
        mixed_batches=True,
        chunked_prefill=True,
        prefix_reuse=True,
        overlap=True,
        static_shapes=True,
        max_prefills=2,
        sampling="host",
    )

    def __init__(self, config: EngineConfig, rank: int = 0) -> None:
        super().__init__(config, rank)
        self._buckets: ShapeBuckets | None = None

    @property
    def device(self) -> str:
        return "cpu:0"

    def memory(self) -> MemoryProfiler:
        return AcmeMemory()

    def attention(self, spec: AttentionSpec) -> AttentionBackend:
        if reason := WholeBucketAttention.unsupported(spec):
            raise UnsupportedError(f"the Acme NPU's attention: {reason}")
        return WholeBucketAttention(spec, self.device)

    def buckets(self, limits: StepLimits) -> ShapeBuckets:
        self._buckets = ShapeBuckets.doubling(limits, smallest_tokens=32, step_cost=8.0)
        return self._buckets

    def graphs(self) -> GraphRunner:
        assert self._buckets is not None
        return Programs(self._buckets)

    def ops(self, table: OpTable) -> None:
        def narrow(*, width: int, **_: object) -> str | None:
            return None if width % 16 == 0 else f"a width of {width}, which is no multiple of 16"

        @table.register("rms_norm", source=self.name, priority=10, unless=narrow)
        def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
            wide = x.double()
            scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
            return (wide * scale * weight.double()).to(x.dtype)
