"""The parts of the Gaudi platform."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from engine.compiled import CompiledPlatform
from engine.config import DeviceChoice, EngineConfig
from engine.errors import ConfigError, UnsupportedError
from engine.platform import (
    AttentionBackend,
    AttentionSpec,
    Capabilities,
    MemoryProfiler,
    OpTable,
    Shape,
    ShapeBuckets,
    StepLimits,
)
from engine.platform.shapes import doubled
from engine_gaudi import bridge, fp8, kernels, ops
from engine_gaudi.attention import KV_FP8, FlatPagedAttention
from engine_gaudi.memory import HpuMemory

#: Where compiled programs ("recipes") are kept: folder, emptied at start?, MiB, on a network disk?
RECIPES = "PT_HPU_RECIPE_CACHE_CONFIG"
RECIPES_MIB = 16384
#: The module (socket of the board) that this process opens.
MODULE = "HLS_MODULE_ID"
#: Tokens, and blocks a request, of the smallest programs. Less costs hardly less, next to reading
#: the weights, and each size is a program more for each of the others.
SMALLEST_PROMPT = 128
SMALLEST_TABLE = 4


@dataclass(frozen=True, kw_only=True)
class PromptBuckets(ShapeBuckets):
    """Prompts one at a time. A long bucket over a short block table has no program: a prompt that
    needs the one does not fit the other."""

    block_size: int

    def shapes(self) -> tuple[Shape, ...]:
        return tuple(one for one in super().shapes() if one.decode or self._can_occur(one))

    def _can_occur(self, shape: Shape) -> bool:
        place = self.tokens.index(shape.tokens)
        fewest = self.tokens[place - 1] + 1 if place else 1
        return shape.blocks == self.blocks[-1] or shape.blocks * self.block_size >= fewest


class GaudiPlatform(CompiledPlatform):
    """A process opens one device, which is always its first, whichever of the machine's it is."""

    name = "gaudi"
    torch_device = "hpu"
    dynamo_backend = "hpu_backend"
    distributed_backend = "hccl"
    attention_backends = (FlatPagedAttention,)
    capabilities = Capabilities(
        dtypes=("bfloat16", "float32"),
        kv_dtypes=("bfloat16", "float32", "fp8_e4m3"),
        quantization=frozenset({fp8.QUANTIZATION}),
        block_sizes=(128,),
        world_size=8,
        chunked_prefill=True,
        prefix_reuse=True,
        overlap=True,
        static_shapes=True,
        max_prefills=1,
    )

    def __init__(self, config: EngineConfig, rank: int = 0) -> None:
        super().__init__(config, rank)
        if indices := DeviceChoice.parse(config.device).indices:
            os.environ[MODULE] = module(indices[rank])
        if config.tensor_parallel > 1 and bridge.find() is not None:
            bridge.load_collectives()
        self._kernels = kernels.choose()

    @property
    def device(self) -> str:
        return f"{self.torch_device}:0"

    @property
    def compiler(self) -> str:
        return f"{self.dynamo_backend} {bridge.release()} torch {torch.__version__}"

    @property
    def generation(self) -> str:
        """As the bridge names it: "GAUDI2". Opens the device."""
        return str(torch.get_device_module(self.torch_device).get_device_name())

    def make_buckets(self, limits: StepLimits) -> ShapeBuckets:
        most_tokens = min(limits.max_tokens, limits.max_blocks * limits.block_size)
        return PromptBuckets(
            tokens=doubled(SMALLEST_PROMPT, most_tokens),
            requests=(1,),
            decodes=doubled(1, limits.max_requests),
            blocks=doubled(SMALLEST_TABLE, limits.max_blocks),
            block_size=limits.block_size,
        )

    def use_cache(self, folder: Path) -> None:
        """The user's own folder stays. Ranks share one: the first to compile a program writes it,
        and the others read it."""
        os.environ.setdefault(RECIPES, f"{folder},false,{RECIPES_MIB},false")

    def memory(self) -> MemoryProfiler:
        return HpuMemory(torch.get_device_module(self.torch_device))

    def attention(self, spec: AttentionSpec) -> AttentionBackend:
        in_fp8 = spec.kv_dtype == KV_FP8
        why = FlatPagedAttention.unsupported(spec) or (
            fp8.lacking(self.generation) if in_fp8 else None
        )
        if why:
            raise UnsupportedError(f"paged attention of the Gaudi platform: {why}")
        largest = fp8.LARGEST[self.generation] if in_fp8 else None
        return FlatPagedAttention(spec, self.device, self._kernels, largest)

    def ops(self, table: OpTable) -> None:
        ops.register(table, self._kernels, lambda: self.generation)

    def to_host(self, x: Tensor) -> Callable[[], Tensor]:
        copied = x.to("cpu", non_blocking=True)
        done = torch.get_device_module(self.torch_device).Event()
        done.record()

        def wait() -> Tensor:
            done.synchronize()
            return copied

        return wait

    def synchronize(self) -> None:
        torch.get_device_module(self.torch_device).synchronize()


def module(index: int) -> str:
    """Of the device with this index among those that the process may use.

    Raises:
        ConfigError: there are not so many.
    """
    visible = bridge.visible_modules()
    if visible is None:
        return str(index)
    if index >= len(visible):
        raise ConfigError(
            f"--device gaudi:{index} counts from 0 in {bridge.VISIBLE_MODULES}, which names"
            f" {len(visible)}: {','.join(visible)}"
        )
    return visible[index]
