"""What a platform is."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from engine.config import EngineConfig
from engine.platform.attention import AttentionBackend, AttentionSpec
from engine.platform.comm import Communicator, SoloCommunicator
from engine.platform.graph import EagerRunner, GraphRunner
from engine.platform.memory import MemoryProfiler
from engine.platform.ops import OpTable
from engine.platform.profile import DeviceProfile
from engine.platform.runner import Runner
from engine.platform.shapes import ShapeBuckets, StepLimits

if TYPE_CHECKING:
    from torch import Tensor

#: The contract's version. The first number rises when something is removed, changed or made
#: required; the second when something optional is added. Each rise has an entry in CHANGELOG.md
#: beside this file. A plugin states, as a literal, the version it was written against.
API_VERSION = (1, 5)


@dataclass(frozen=True, slots=True)
class Availability:
    """`detail` names the devices, or says why there is none and what would bring them."""

    devices: int
    detail: str = ""

    def __bool__(self) -> bool:
        return self.devices > 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Capabilities:
    """What core may count on. Every default is the most careful answer."""

    dtypes: tuple[str, ...] = ("float32",)  # best first: "auto" takes the first fit
    kv_dtypes: tuple[str, ...] = ("float32",)
    quantization: frozenset[str] = frozenset()  # of "int8", "int4", "fp8"
    block_sizes: tuple[int, ...] = (16,)  # the first is the default
    world_size: int = 1  # the most ranks of one engine
    mixed_batches: bool = False  # prefill and decode may share a step
    chunked_prefill: bool = False  # a prompt may be computed in several steps
    prefix_reuse: bool = False  # a request may read blocks that another one wrote
    overlap: bool = False  # a step may be started before the last one's tokens were read
    pinned_memory: bool = False  # what a step sends to the device is staged in such memory
    static_shapes: bool = False  # steps are padded to the shapes that `Platform.buckets` names
    max_prefills: int | None = None  # the most prompts in one step
    sampling: Literal["device", "host"] = "device"  # where tokens are chosen; host: logits go there


class Platform(ABC):
    """The wide seam: parts that the core's model runner uses. One object a rank."""

    name: str
    capabilities: Capabilities = Capabilities()

    def __init__(self, config: EngineConfig, rank: int = 0) -> None:
        self.config = config
        self.rank = rank

    @property
    @abstractmethod
    def device(self) -> str:
        """As torch spells it, with an index."""

    @abstractmethod
    def memory(self) -> MemoryProfiler: ...

    #: The backends that `attention` chooses from, best first: `engine explain` asks each of them.
    attention_backends: Sequence[type[AttentionBackend]] = ()

    @abstractmethod
    def attention(self, spec: AttentionSpec) -> AttentionBackend:
        """A backend for `spec`.

        Raises:
            UnsupportedError: none of the platform's backends serves it; says why, one by one.
        """

    def communicator(self, ranks: tuple[int, ...]) -> Communicator:
        """Joins the group of `ranks`, this platform's own rank among them."""
        return SoloCommunicator()

    def graphs(self) -> GraphRunner:
        return EagerRunner()

    def buckets(self, limits: StepLimits) -> ShapeBuckets | None:
        """The shapes of steps, for a device with `static_shapes`; None from any other.

        Asked once, before `graphs`: `limits` also tell what to prepare for.
        """
        return None

    def ops(self, table: OpTable) -> None:
        """Add faster implementations to the table core has already filled."""

    def runner(self) -> Runner | None:
        """The narrow seam, for devices torch does not drive. None: core's own runner."""
        return None

    def to_host(self, x: "Tensor") -> "Callable[[], Tensor]":
        """Start to copy `x` to the host; what is returned waits for the copy, and returns it.

        A device that computes while the host goes on waits for no work that was started later.
        """
        return lambda: x.cpu()

    def synchronize(self) -> None:
        """Wait for the device's work that was started so far."""

    def close(self) -> None:
        """Give everything back. Safe to call twice."""


def no_words(words: Sequence[str]) -> str | None:
    """What a platform answers that takes nothing but indices in `--device NAME:…`."""
    return "it takes NAME or NAME:INDEX,INDEX…, no words" if words else None


@dataclass(frozen=True, kw_only=True, slots=True)
class PlatformSpec:
    """What a plugin hands over. Cheap to make: no driver call, not even in `probe`."""

    name: str
    api: tuple[int, int]  # a literal: the version the plugin was written against
    probe: Callable[[], Availability]  # never raises; touches no driver state
    create: Callable[[EngineConfig, int], Platform]  # (resolved configuration, rank)
    priority: int = 0  # among available ones, for --device auto
    defaults: Callable[[], Mapping[str, Any]] = dict  # better EngineConfig values; the user's win
    environment: Callable[[int], Mapping[str, str]] = lambda rank: {}  # set before torch's import
    #: Why these words of `--device NAME:WORD,…` cannot be used, or None when they can.
    refuses: Callable[[Sequence[str]], str | None] = no_words
    #: What the device can do, for predictions without it; from the whole text of `--device`.
    profile: Callable[[str], DeviceProfile | None] = lambda device: None
