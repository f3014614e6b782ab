"""What platforms of GPUs that Triton compiles for have in common: all but their names.

A subclass says how its device is opened and called, and which library its ranks talk through.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from engine.compiled import Groups
from engine.config import DeviceChoice, EngineConfig
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
    ShapeBuckets,
    StepLimits,
)
from engine_triton import linear, pointwise, sampling
from engine_triton.architecture import Architecture
from engine_triton.attention.backend import PagedAttention
from engine_triton.attention.paged import PagedCache
from engine_triton.capture import CapturedRunner
from engine_triton.device import Device
from engine_triton.memory import DeviceMemory

#: The first is the default: a program reads whole tiles of it, and prefixes end often enough.
BLOCK_SIZES = (16, 32, 64, 128, 256)
#: Ranks that a machine has GPUs for.
MOST_RANKS = 8


def capabilities(architecture: Architecture) -> Capabilities:
    """Caches in fp8 are converted by the kernels where the chip does not."""
    return Capabilities(
        dtypes=("bfloat16", "float16", "float32"),
        kv_dtypes=("bfloat16", "float16", "float32", "fp8_e4m3", "fp8_e5m2"),
        quantization=linear.QUANTIZATION,
        block_sizes=BLOCK_SIZES,
        world_size=MOST_RANKS,
        mixed_batches=True,
        chunked_prefill=True,
        prefix_reuse=True,
        overlap=True,
        pinned_memory=not architecture.interpreted,
    )


class TritonPlatform(Platform):
    """A rank has one GPU: the one of its place in `--device NAME:INDEX,…`, or of its number."""

    kind: str  # of the device, as torch spells it
    collectives: str = "gloo"  # of `torch.distributed`'s backends
    attention_backends: Sequence[type[PagedCache]] = (PagedAttention,)  # the first that serves

    def __init__(self, config: EngineConfig, rank: int = 0) -> None:
        super().__init__(config, rank)
        indices = DeviceChoice.parse(config.device).indices
        if indices and rank >= len(indices):
            raise UnsupportedError(
                f"rank {rank} has no GPU: --device {config.device} names {len(indices)};"
                " name one for each rank, or none"
            )
        self.gpu = self.open(indices[rank] if indices else rank)
        self.architecture = self.examine()
        self.capabilities = capabilities(self.architecture)
        self._memory = DeviceMemory(self.gpu, self.own_memory())
        self._groups = Groups(rank, backend=self.collectives, device=self.kind)
        self._limits: StepLimits | None = None

    @abstractmethod
    def open(self, index: int) -> Device:
        """The GPU with this index among those that the process sees.

        Raises:
            UnsupportedError: there is none.
        """

    def examine(self) -> Architecture:
        """
        Raises:
            UnsupportedError: the kernels are not made for such a GPU.
        """
        return Architecture.current()

    def own_memory(self) -> Callable[[], int | None]:
        """What gives the bytes that the driver counts for this process, or None."""
        return lambda: None

    @property
    def device(self) -> str:
        return self.gpu.name

    def memory(self) -> MemoryProfiler:
        return self._memory

    def attention(self, spec: AttentionSpec) -> AttentionBackend:
        reasons = []
        for backend in self.attention_backends:
            if (why := backend.unsupported(spec)) is None:
                return backend(spec, self.device, self.architecture)
            reasons.append(f"{backend.__name__}: {why}")
        raise UnsupportedError(f"attention of the {self.name} platform: {'; '.join(reasons)}")

    def communicator(self, ranks: tuple[int, ...]) -> Communicator:
        if len(ranks) > 1:
            self.register_collectives()
        return self._groups.join(ranks)

    def register_collectives(self) -> None:
        """Let torch know of the backend named `collectives`; called before a group is made.

        Raises:
            UnsupportedError: torch was built without it.
        """

    def buckets(self, limits: StepLimits) -> ShapeBuckets | None:
        self._limits = limits  # of the programs to capture; steps are not padded by the core
        return None

    def graphs(self) -> GraphRunner:
        if self._limits is None:
            return EagerRunner()
        return CapturedRunner(self.gpu, self._limits, self.architecture, self._agree)

    def _agree(self, captured: list[bool]) -> list[bool]:
        """Of each, whether all ranks have it. Collective."""
        ranks = tuple(range(self.config.tensor_parallel))
        if len(ranks) == 1:
            return captured
        counts = torch.tensor(captured, dtype=torch.int32, device=self.device)
        group = self.communicator(ranks)
        agreed: list[int] = group.all_reduce(counts).tolist()
        group.close()
        return [count == len(ranks) for count in agreed]

    def ops(self, table: OpTable) -> None:
        for group in (linear, pointwise, sampling):
            group.register(table, self.architecture, source=self.name)

    def to_host(self, x: Tensor) -> Callable[[], Tensor]:
        return self.gpu.to_host(x)

    def synchronize(self) -> None:
        self.gpu.synchronize()

    def close(self) -> None:
        self._groups.close()
        self.gpu.release_cached()
