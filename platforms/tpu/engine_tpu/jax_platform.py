"""Through JAX: one process for all chips, in which torch's model is traced into programs.

The same code computes on TPU chips and on chips that the CPU simulates; the latter attend by jax's
own operations instead of the kernels, and have an invented amount of memory.
"""

from pathlib import Path
from typing import ClassVar

import jax

from engine.compiled import CompiledPlatform, ProgramCache
from engine.config import DeviceChoice, EngineConfig
from engine.errors import UnsupportedError
from engine.platform import (
    AttentionBackend,
    AttentionSpec,
    MemoryProfiler,
    OpTable,
    ShapeBuckets,
    StepLimits,
)
from engine_tpu import installed, ops, words
from engine_tpu.attention import KernelAttention, PlainAttention
from engine_tpu.buckets import STEP, buckets, growing
from engine_tpu.layout import CAPABILITIES
from engine_tpu.memory import ChipMemory, of_arrays
from engine_tpu.placement import Placement
from engine_tpu.programs import Programs
from engine_tpu.sampling import Sampling

SIMULATED_BYTES = 16 * 2**30
CACHE_SHARE = 0.9


class JaxPlatform(CompiledPlatform):
    """torch's tensors are the host's: the core loads weights and keeps requests' tokens there. What
    a step computes is on the chips, and so is what chooses its tokens."""

    name = "tpu_jax"
    device = "cpu:0"
    torch_device = "cpu"
    dynamo_backend = "jax"  # no backend of torch's: `Programs` trace by themselves
    kind: ClassVar[str] = "tpu"  # of jax's devices
    bucket_step: ClassVar[int] = STEP
    attention_backends: tuple[type[PlainAttention], ...] = (KernelAttention, PlainAttention)
    capabilities = CAPABILITIES

    def __init__(self, config: EngineConfig, rank: int = 0) -> None:
        super().__init__(config, rank)
        choice = DeviceChoice.parse(config.device)
        self._devices = self._choose(choice.indices, words.chips(choice.words))
        self.maker = self.programs = Programs(Placement.over(self._devices))
        self._sampling = Sampling(self.programs, growing(1, config.max_requests, self.bucket_step))
        _keep_programs(ProgramCache(self.name, installed.versions("jax", "torchax")).folder)

    @property
    def compiler(self) -> str:
        return f"{installed.versions('jax', 'torchax')} {self._devices}"

    def make_buckets(self, limits: StepLimits) -> ShapeBuckets:
        return buckets(limits, self.bucket_step)

    def memory(self) -> MemoryProfiler:
        told = self._devices[0].memory_stats
        return ChipMemory(told()["bytes_limit"], lambda: told()["bytes_in_use"], CACHE_SHARE)

    def attention(self, spec: AttentionSpec) -> AttentionBackend:
        if why := self.programs.placement.refuses(spec):
            raise UnsupportedError(why)
        reasons = []
        for backend in self.attention_backends:
            if (why := backend.unsupported(spec)) is None:
                return backend(spec, self.device, self.programs)
            reasons.append(f"{backend.__name__}: {why}")
        raise UnsupportedError(f"paged attention of platform {self.name}: {'; '.join(reasons)}")

    def ops(self, table: OpTable) -> None:
        ops.register(table, self.name)
        self._sampling.register(table, self.name)

    def synchronize(self) -> None:
        jax.block_until_ready(jax.live_arrays())

    def _choose(self, indices: tuple[int, ...], count: int) -> list[jax.Device]:
        """
        Raises:
            UnsupportedError: jax has not as many.
        """
        devices = jax.devices(self.kind)
        if (indices and max(indices) >= len(devices)) or count > len(devices):
            raise UnsupportedError(
                f"--device {self.config.device} asks for more chips than jax has here:"
                f" {len(devices)}, {devices[0].device_kind}"
            )
        return [devices[index] for index in indices] if indices else devices[:count]


class SimulatedPlatform(JaxPlatform):
    """Chips that the CPU simulates, for tests and for people without a TPU."""

    name = "tpu_simulated"
    kind = "cpu"
    bucket_step = 16  # to compile a program takes longer than to compute padding
    attention_backends = (PlainAttention,)

    def __init__(self, config: EngineConfig, rank: int = 0) -> None:
        jax.config.update("jax_platforms", "cpu")
        super().__init__(config, rank)

    def memory(self) -> MemoryProfiler:
        return ChipMemory(SIMULATED_BYTES, lambda: of_arrays(self._devices[0]), CACHE_SHARE)


def _keep_programs(folder: Path) -> None:
    """For the next start, of whatever engine: jax names programs there by their content, and keeps
    to the first folder that a process names."""
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
