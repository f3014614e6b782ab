"""A device that is a torch device, a compiler and a collective library, with static shapes."""

from pathlib import Path

from engine.compiled.communicator import ProgramCommunicator
from engine.compiled.group import GroupCommunicator, Groups
from engine.compiled.maker import DynamoBackend, ProgramMaker
from engine.compiled.programs import ProgramCache
from engine.compiled.runner import CompiledRunner
from engine.config import DeviceChoice, EngineConfig
from engine.platform import (
    Communicator,
    GraphRunner,
    Platform,
    ShapeBuckets,
    StepLimits,
)


class CompiledPlatform(Platform):
    """What such devices have in common; memory and attention are the platform's own.

    A subclass names the three, and says in its capabilities that it has `static_shapes`. What its
    other parts compile, they have made by `maker`, so that it is counted.
    """

    torch_device: str  # "npu"
    dynamo_backend: DynamoBackend
    distributed_backend: str = "gloo"

    def __init__(self, config: EngineConfig, rank: int = 0) -> None:
        super().__init__(config, rank)
        self.maker = ProgramMaker(self.dynamo_backend)
        self._limits: StepLimits | None = None
        self._groups = Groups(rank, backend=self.distributed_backend, device=self.torch_device)

    @property
    def device(self) -> str:
        indices = DeviceChoice.parse(self.config.device).indices
        return f"{self.torch_device}:{indices[self.rank] if indices else self.rank}"

    @property
    def compiler(self) -> str:
        """Name and version of what makes programs: another one's are not used."""
        return str(self.dynamo_backend)

    def make_buckets(self, limits: StepLimits) -> ShapeBuckets:
        """The shapes to make programs for."""
        return ShapeBuckets.doubling(limits)

    def use_cache(self, folder: Path) -> None:
        """Let the compiler keep its artefacts in this folder. Called before it is used."""

    def buckets(self, limits: StepLimits) -> ShapeBuckets:
        self._limits = limits
        return self.make_buckets(limits)

    def graphs(self) -> GraphRunner:
        assert self._limits is not None, "the core asks for buckets before it asks for graphs"
        buckets = self.make_buckets(self._limits)
        cache = ProgramCache(
            self.name, self.compiler, self._limits.fingerprint, str(self._limits), repr(buckets)
        )
        self.use_cache(cache.folder)
        return CompiledRunner(buckets, self.maker, cache)

    def communicator(self, ranks: tuple[int, ...]) -> Communicator:
        joined = self._groups.join(ranks)
        return ProgramCommunicator(joined) if isinstance(joined, GroupCommunicator) else joined

    def close(self) -> None:
        self._groups.close()
