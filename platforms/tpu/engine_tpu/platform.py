"""Through `torch_tpu`: one chip, which torch has as a device of its own. Untested on hardware."""

from dataclasses import replace
from pathlib import Path

from engine.compiled import CompiledPlatform
from engine.config import EngineConfig
from engine.errors import UnsupportedError
from engine.platform import (
    AttentionBackend,
    AttentionSpec,
    MemoryProfiler,
    OpTable,
    ShapeBuckets,
    StepLimits,
)
from engine_tpu import installed, ops
from engine_tpu.buckets import buckets
from engine_tpu.kernel_ops import TorchTpuAttention
from engine_tpu.layout import CAPABILITIES
from engine_tpu.memory import ChipMemory


class TpuPlatform(CompiledPlatform):
    name = "tpu"
    torch_device = "tpu"
    dynamo_backend = "tpu"
    distributed_backend = "tpu_dist"
    attention_backends = (TorchTpuAttention,)
    capabilities = replace(CAPABILITIES, sampling="host")

    def __init__(self, config: EngineConfig, rank: int = 0) -> None:
        if why := installed.missing(installed.TORCH_TPU):
            raise UnsupportedError(why)
        import torch
        import torch_tpu  # noqa: F401  # torch.tpu is there then

        super().__init__(config, rank)
        self._torch_tpu = torch.tpu  # type: ignore[attr-defined]

    @property
    def compiler(self) -> str:
        return installed.versions("torch_tpu", "libtpu", "jax")

    def use_cache(self, folder: Path) -> None:
        """Traces of the kernels; what `torch_tpu` compiled it keeps where its own settings say."""
        import jax

        jax.config.update("jax_compilation_cache_dir", str(folder))

    def make_buckets(self, limits: StepLimits) -> ShapeBuckets:
        return buckets(limits)

    def memory(self) -> MemoryProfiler:
        total = self._torch_tpu.get_device_properties(self.device).total_memory
        return ChipMemory(total, lambda: 0, cache_share=0.7)  # it tells nothing of what is held

    def attention(self, spec: AttentionSpec) -> AttentionBackend:
        if why := TorchTpuAttention.unsupported(spec):
            raise UnsupportedError(f"paged attention of platform tpu: {why}")
        return TorchTpuAttention(spec, self.device, self.maker)

    def ops(self, table: OpTable) -> None:
        ops.register(table, self.name)

    def synchronize(self) -> None:
        self._torch_tpu.synchronize()
