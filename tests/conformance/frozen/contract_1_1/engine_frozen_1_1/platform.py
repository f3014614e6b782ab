"""The parts that the core's model runner uses."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from engine.config import EngineConfig
from engine.errors import UnsupportedError
from engine.platform import (
    AttentionBackend,
    AttentionSpec,
    Capabilities,
    MemoryProfiler,
    MemorySnapshot,
    OpTable,
    Platform,
)
from engine_frozen_1_1 import operations
from engine_frozen_1_1.attention import AcmeAttention

MEMORY = 2 * 2**30  # bytes


class AcmeMemory(MemoryProfiler):
    """The device has 2 GiB and tells totals only.

    The stand-in keeps no books of its own: what the process grew by since the platform was made
    counts as used.
    """

    kind = "statistics"

    def __init__(self) -> None:
        self._process = psutil.Process(os.getpid())
        self._before = self._process.memory_info().rss
        self._peak = 0

    def snapshot(self) -> MemorySnapshot:
        grown = self._process.memory_info().rss - self._before
        used = min(max(grown, 0), MEMORY)
        self._peak = max(self._peak, used)
        return MemorySnapshot(total=MEMORY, free=MEMORY - used, used=used, peak=self._peak)

    @contextmanager
    def measure(self) -> Iterator[None]:
        self._peak = 0
        yield


class AcmePlatform(Platform):
    name = "frozen_1_1"
    capabilities = Capabilities(
        dtypes=("float32", "bfloat16"),
        kv_dtypes=("float32", "bfloat16"),
        block_sizes=(32, 128),
        chunked_prefill=True,
        prefix_reuse=True,
        quantization=frozenset({"int8"}),
    )

    def __init__(self, config: EngineConfig, rank: int = 0) -> None:
        super().__init__(config, rank)
        self._memory = AcmeMemory()

    @property
    def device(self) -> str:
        return f"cpu:{self.rank}"

    def memory(self) -> MemoryProfiler:
        return self._memory

    def attention(self, spec: AttentionSpec) -> AttentionBackend:
        if reason := AcmeAttention.unsupported(spec):
            raise UnsupportedError(f"the Acme NPU's attention: {reason}")
        return AcmeAttention(spec, self.device)

    def ops(self, table: OpTable) -> None:
        operations.register(table, self.name)
