"""The parts that the core's model runner uses."""

from dataclasses import replace

from engine.compiled import Groups
from engine.config import DeviceChoice, EngineConfig
from engine.errors import ConfigError, UnsupportedError
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
from engine.platform.shapes import doubled
from engine_sim import backend, ops, words
from engine_sim.attention import BLOCK_SIZES, DTYPES, SimAttention
from engine_sim.chip import Chip, chip
from engine_sim.communicator import SimCommunicator
from engine_sim.faults import SteppedRunner
from engine_sim.kernel import PAD_SLOT
from engine_sim.memory import SimMemory
from engine_sim.programs import ProgramRunner

#: The smallest program of a static device: more would be made than such a small device is worth.
SMALLEST = {"tokens": 32, "decodes": 4, "blocks": 16}

CAPABILITIES = Capabilities(
    dtypes=tuple(DTYPES),
    kv_dtypes=tuple(DTYPES),
    block_sizes=BLOCK_SIZES,
    world_size=words.DEVICES,
    mixed_batches=True,
    chunked_prefill=True,
    prefix_reuse=True,
    overlap=True,
)


class SimPlatform(Platform):
    """Rank r computes on the r-th index of `--device sim:0,1,…`, or on sim:r.

    `chip` tells what the device did: `platform.chip.clock.step_s`, `platform.chip.counts`.
    """

    name = "sim"
    attention_backends = (SimAttention,)

    def __init__(self, config: EngineConfig, rank: int = 0) -> None:
        super().__init__(config, rank)
        choice = DeviceChoice.parse(config.device)
        self.options = words.read(choice.words)
        self.chip: Chip = chip(_index(choice.indices, rank))
        self.chip.open(self.options)
        backend.register()
        self.capabilities = CAPABILITIES
        if self.options.profile is not words.OWN_PROFILE:  # as those devices are used
            self.capabilities = replace(CAPABILITIES, dtypes=tuple(reversed(DTYPES)))
        if self.options.static:
            self.capabilities = replace(self.capabilities, static_shapes=True, sampling="host")
        self._buckets: ShapeBuckets | None = None
        self._groups = Groups(rank)

    @property
    def device(self) -> str:
        return self.chip.name

    def memory(self) -> MemoryProfiler:
        return SimMemory(self.chip.books)

    def attention(self, spec: AttentionSpec) -> AttentionBackend:
        if reason := SimAttention.unsupported(spec):
            raise UnsupportedError(f"the simulated device's attention: {reason}")
        return SimAttention(spec, self.device)

    def buckets(self, limits: StepLimits) -> ShapeBuckets | None:
        if self.options.static:
            self._buckets = ShapeBuckets(
                tokens=doubled(SMALLEST["tokens"], limits.max_tokens),
                requests=(limits.max_requests,),
                decodes=doubled(SMALLEST["decodes"], limits.max_requests),
                blocks=doubled(SMALLEST["blocks"], limits.max_blocks),
                pad_slot=PAD_SLOT,
                missing="compile" if self.options.compiles else "error",
            )
        return self._buckets

    def graphs(self) -> GraphRunner:
        inner: GraphRunner = EagerRunner()
        if self._buckets is not None:
            inner = ProgramRunner(self.chip, self._buckets)
        may_wait = not (self.options.static or self.options.no_sync)
        return SteppedRunner(inner, self.chip, self.options.faults, may_wait=may_wait)

    def communicator(self, ranks: tuple[int, ...]) -> Communicator:
        """
        Raises:
            UnsupportedError: there are several ranks, and no address where they could meet.
        """
        joined = self._groups.join(ranks)
        return joined if joined.size == 1 else SimCommunicator(self.chip, joined)

    def ops(self, table: OpTable) -> None:
        ops.register(table)

    def synchronize(self) -> None:
        self.chip.wait("synchronize")

    def close(self) -> None:
        self._groups.close()


def _index(indices: tuple[int, ...], rank: int) -> int:
    if not indices:
        return rank
    if rank >= len(indices):
        raise ConfigError(
            f"rank {rank} has no device: --device names {len(indices)}; name one for each rank, or"
            " none"
        )
    return indices[rank]
