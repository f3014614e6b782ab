"""The parts that the core's model runner uses."""

import os
from dataclasses import dataclass
from pathlib import Path

from engine.compiled import CompiledPlatform
from engine.config import DeviceChoice, EngineConfig
from engine.errors import UnsupportedError
from engine.platform import (
    AttentionBackend,
    AttentionSpec,
    Capabilities,
    MemoryProfiler,
    OpTable,
    ShapeBuckets,
    StepLimits,
)
from engine_neuron import cores, installed, ops
from engine_neuron.attention import BLOCK_SIZES, DTYPES, PAD, NkiAttention, TorchAttention
from engine_neuron.memory import DeviceCalls, NeuronMemory

#: Each size is this many times the one before: a program takes minutes to compile.
STEP = 4
#: Rows of a prompt that the kernel for prompts is made for.
SMALLEST_TOKENS = 128
#: Places of a context: the kernel for tokens reads them in so many parts.
PLACES = 256


@dataclass(frozen=True, kw_only=True)
class Buckets(ShapeBuckets):
    """Prompts one at a time, each in pieces of `tokens`; decode steps of `decodes` requests; both
    over contexts of `blocks`."""

    @classmethod
    def of(cls, limits: StepLimits) -> "Buckets":
        unit = -(-PLACES // limits.block_size)
        return cls(
            tokens=growing(SMALLEST_TOKENS, limits.max_tokens),
            requests=(1,),
            decodes=growing(1, limits.max_requests),
            blocks=growing(unit, -(-limits.max_blocks // unit) * unit, unit),
            pad_block=PAD,
            pad_slot=PAD,
        )


def growing(smallest: int, most: int, unit: int = 1) -> tuple[int, ...]:
    """smallest, STEP times that and so on, and `most`."""
    sizes, size = [], smallest
    while size < most:
        sizes.append(size)
        size *= STEP
    return (*sizes, most)


#: Logical cores of the largest machine with Trainium 2.
MOST_RANKS = 64

BACKENDS = (NkiAttention, TorchAttention)

#: Where the native backend, and the compiler under it, keep what they made.
CACHE_VARIABLES = ("TORCH_NEURONX_NEFF_CACHE_DIR", "NEURON_COMPILE_CACHE_URL")


class NeuronPlatform(CompiledPlatform):
    """A rank sees one core, its own, and calls it neuron:0."""

    name = "neuron"
    torch_device = "neuron"
    dynamo_backend = "neuron"
    distributed_backend = "neuron"
    attention_backends = BACKENDS
    capabilities = Capabilities(
        dtypes=tuple(DTYPES),
        kv_dtypes=tuple(DTYPES),
        block_sizes=BLOCK_SIZES,
        world_size=MOST_RANKS,
        chunked_prefill=True,
        prefix_reuse=True,
        static_shapes=True,
        max_prefills=1,
        sampling="host",
    )

    def __init__(self, config: EngineConfig, rank: int = 0) -> None:
        super().__init__(config, rank)
        self._open(DeviceChoice.parse(config.device).indices)

    def _open(self, indices: tuple[int, ...]) -> None:
        """Choose the core before the runtime starts, and let torch know of the device.

        Raises:
            UnsupportedError: the vendor's package is not here, or does not go with the others.
        """
        if why := installed.missing():
            raise UnsupportedError(why)
        visible = os.environ.get(cores.VARIABLE, "")
        size = self.config.tensor_parallel
        os.environ[cores.VARIABLE] = str(cores.choose(self.rank, size, indices, visible))
        self._calls = DeviceCalls()

    @property
    def device(self) -> str:
        return f"{self.torch_device}:0"

    @property
    def compiler(self) -> str:
        return installed.versions()

    def use_cache(self, folder: Path) -> None:
        """Compiled programs are named by their content there, so ranks may share the folder."""
        for variable in CACHE_VARIABLES:
            os.environ.setdefault(variable, str(folder))

    def make_buckets(self, limits: StepLimits) -> ShapeBuckets:
        return Buckets.of(limits)

    def memory(self) -> MemoryProfiler:
        return NeuronMemory(self._calls)

    def attention(self, spec: AttentionSpec) -> AttentionBackend:
        reasons = []
        for backend in BACKENDS:
            if (why := backend.unsupported(spec)) is None:
                return backend(spec, self.device, self.maker)
            reasons.append(f"{backend.__name__}: {why}")
        raise UnsupportedError(f"paged attention of the Neuron platform: {'; '.join(reasons)}")

    def ops(self, table: OpTable) -> None:
        ops.register(table)

    def synchronize(self) -> None:
        self._calls.synchronize()
