"""The parts of the CPU platform."""

from collections.abc import Sequence

from engine.compiled import Groups
from engine.config import EngineConfig
from engine.errors import UnsupportedError
from engine.platform import (
    AttentionBackend,
    AttentionSpec,
    Capabilities,
    Communicator,
    EagerRunner,
    GraphRunner,
    MemoryProfiler,
    OpTable,
    Platform,
)
from engine_cpu import native, ops, quantized
from engine_cpu.attention import PagedAttention
from engine_cpu.memory import HostMemory
from engine_cpu.processor import Processor

#: The native kernels need multiples of 32; the rest is for torch's.
BLOCK_SIZES = (32, 64, 128, 256, 16, 8, 4, 2, 1)


def capabilities(processor: Processor, *, with_native: bool) -> Capabilities:
    """bfloat16 halves the memory that a token waits for. torch is slow in it where the processor
    has no instructions for it; the native kernels widen it on the way."""
    narrow = with_native or processor.native_bfloat16
    dtypes = (*(("bfloat16", "float32") if narrow else ("float32", "bfloat16")), "float16")
    return Capabilities(
        dtypes=dtypes,
        kv_dtypes=(*dtypes, "int8") if with_native else dtypes,
        quantization=frozenset(quantized.BITS),
        block_sizes=BLOCK_SIZES,
        world_size=processor.cores,
        mixed_batches=True,
        chunked_prefill=True,
        prefix_reuse=True,
        overlap=True,
    )


class NoNativeAttention(PagedAttention):
    """Stands for the native backend where its kernels cannot be used, and says why."""

    @classmethod
    def unsupported(cls, spec: AttentionSpec) -> str | None:
        return native.available() or "the kernels were out of use when the platform was made"


def attention_backends(without_native: str | None) -> Sequence[type[AttentionBackend]]:
    if without_native is not None:
        return (NoNativeAttention, PagedAttention)
    from engine_cpu.native.attention import NativeAttention

    return (NativeAttention, PagedAttention)


class CpuPlatform(Platform):
    """All ranks of an engine share one CPU and its memory; each has its share of the cores.

    Whoever starts more than one rank sets MASTER_ADDR, MASTER_PORT and WORLD_SIZE for each, as
    torch's own launcher does. The processes meet there; rank 0 must take part, for it keeps the
    address book.
    """

    name = "cpu"

    def __init__(self, config: EngineConfig, rank: int = 0) -> None:
        super().__init__(config, rank)
        self.without_native = native.available()
        self.capabilities = capabilities(Processor(), with_native=self.without_native is None)
        self.attention_backends = attention_backends(self.without_native)
        self._memory = HostMemory(ranks=config.tensor_parallel)
        self._groups = Groups(rank)

    @property
    def device(self) -> str:
        return "cpu:0"

    def memory(self) -> MemoryProfiler:
        return self._memory

    def attention(self, spec: AttentionSpec) -> AttentionBackend:
        reasons = []
        for backend in self.attention_backends:
            if (why := backend.unsupported(spec)) is None:
                return backend(spec, self.device)
            reasons.append(f"{backend.__name__}: {why}")
        raise UnsupportedError(f"paged attention of the CPU platform: {'; '.join(reasons)}")

    def graphs(self) -> GraphRunner:
        if self.without_native is not None:
            return EagerRunner()
        from engine_cpu.native.tape import TapeRunner

        return TapeRunner(self.config.max_batch_tokens, self.config.max_requests)

    def communicator(self, ranks: tuple[int, ...]) -> Communicator:
        return self._groups.join(ranks)

    def ops(self, table: OpTable) -> None:
        ops.register(table)
        quantized.register(table)
        if self.without_native is None:
            from engine_cpu.native import linear, pointwise, sampling
            from engine_cpu.native import quantized as native_quantized

            for module in (linear, pointwise, sampling, native_quantized):
                module.register(table)

    def close(self) -> None:
        self._groups.close()
