"""The parts of the CPU platform."""

import os
from collections import Counter

from engine.config import EngineConfig
from engine.errors import UnsupportedError
from engine.platform import (
    AttentionBackend,
    AttentionSpec,
    Capabilities,
    Communicator,
    MemoryProfiler,
    OpTable,
    Platform,
    SoloCommunicator,
)
from engine_cpu import ops
from engine_cpu.attention import PagedAttention
from engine_cpu.communicator import GlooCommunicator
from engine_cpu.memory import HostMemory
from engine_cpu.processor import Processor

BLOCK_SIZES = (16, 32, 64, 128, 256, 8, 4, 2, 1)


def capabilities(processor: Processor) -> Capabilities:
    """Without hardware for it bfloat16 halves the memory, but float32 computes faster."""
    best = ("bfloat16", "float32") if processor.native_bfloat16 else ("float32", "bfloat16")
    dtypes = (*best, "float16")
    return Capabilities(
        dtypes=dtypes,
        kv_dtypes=dtypes,
        block_sizes=BLOCK_SIZES,
        world_size=processor.cores,
        mixed_batches=True,
        chunked_prefill=True,
        prefix_reuse=True,
        overlap=True,
    )


class CpuPlatform(Platform):
    """All ranks of an engine share one CPU and its memory; each has its share of the cores.

    Whoever starts more than one rank sets MASTER_ADDR, MASTER_PORT and WORLD_SIZE for each, as
    torch's own launcher does. The processes meet there; rank 0 must take part, for it keeps the
    address book.
    """

    name = "cpu"

    def __init__(self, config: EngineConfig, rank: int = 0) -> None:
        super().__init__(config, rank)
        self.capabilities = capabilities(Processor())
        self._memory = HostMemory()
        self._communicators: list[Communicator] = []
        self._groups_made: Counter[tuple[int, ...]] = Counter()

    @property
    def device(self) -> str:
        return "cpu:0"

    def memory(self) -> MemoryProfiler:
        return self._memory

    def attention(self, spec: AttentionSpec) -> AttentionBackend:
        if reason := PagedAttention.unsupported(spec):
            raise UnsupportedError(f"paged attention of the CPU platform: {reason}")
        return PagedAttention(spec, self.device)

    def communicator(self, ranks: tuple[int, ...]) -> Communicator:
        """
        Raises:
            UnsupportedError: there are several ranks, and no address where they could meet.
        """
        if len(ranks) == 1:
            return SoloCommunicator()
        address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
        if not address or not port:
            raise UnsupportedError(
                f"ranks {ranks} of the CPU platform need a place to meet; set MASTER_ADDR and"
                " MASTER_PORT to the same free port for each of them"
            )
        instance = self._groups_made[ranks]
        self._groups_made[ranks] += 1
        made = GlooCommunicator(f"tcp://{address}:{port}", self.rank, ranks, instance=instance)
        self._communicators.append(made)
        return made

    def ops(self, table: OpTable) -> None:
        ops.register(table)

    def close(self) -> None:
        while self._communicators:
            self._communicators.pop().close()
