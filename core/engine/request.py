"""A request, from admission to its last token. Plain Python: no tensors."""

from dataclasses import dataclass, field
from enum import Enum

from msgspec import Struct

from engine.batch import Logprobs
from engine.params import SamplingParams


class Finish(Enum):
    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Submission:
    """What a client asks for: `params.n` continuations of one prompt."""

    id: str
    prompt: tuple[int, ...]
    params: SamplingParams
    priority: int = 0  # lower is sooner
    cache_salt: str = ""  # prefixes are shared only between equal salts


@dataclass(slots=True, eq=False)
class Times:
    """Seconds on the loop's clock; 0.0: not yet."""

    arrived: float = 0.0
    scheduled: float = 0.0
    first_token: float = 0.0
    finished: float = 0.0


@dataclass(slots=True, eq=False)
class Request:
    """One continuation.

        |---- prompt ----|---- output ----|-- pending --|
        |------- computed -------|

    `computed` tokens have their KV in the cache, or on its way there; `pending` tokens were
    sampled on the device but not yet seen here.
    """

    key: int  # unique within one scheduler
    id: str  # the submission's
    index: int  # which of its `n` continuations
    prompt: tuple[int, ...]
    params: SamplingParams
    seed: int
    max_tokens: int
    stop_ids: frozenset[int] = frozenset()
    priority: int = 0
    cache_salt: str = ""
    leader: "Request | None" = None  # the sibling whose prompt blocks this one shares
    output: list[int] = field(default_factory=list)
    computed: int = 0
    pending: int = 0
    blocks: list[int] = field(default_factory=list)
    block_hashes: list[bytes] = field(default_factory=list)  # of full blocks, as far as known
    num_remembered: int = 0  # leading blocks that the prefix cache knows
    num_cached: int = 0  # prompt tokens found in the prefix cache when first admitted
    num_preemptions: int = 0
    finish: Finish | None = None
    times: Times = field(default_factory=Times)

    def __len__(self) -> int:
        return len(self.prompt) + len(self.output) + self.pending

    @property
    def rank(self) -> tuple[int, int]:
        """Smaller goes first: priority, then arrival."""
        return (self.priority, self.key)

    @property
    def tokens(self) -> tuple[int, ...]:
        return (*self.prompt, *self.output)

    def span(self, start: int, stop: int) -> tuple[int, ...]:
        """Tokens start:stop, all of them known."""
        border = len(self.prompt)
        return (
            *self.prompt[start:stop],
            *self.output[max(0, start - border) : max(0, stop - border)],
        )

    @property
    def wants_more(self) -> bool:
        return self.finish is None and len(self.output) + self.pending < self.max_tokens


class Delta(Struct, frozen=True):
    """What one step, or an abort or an error, changed for one request."""

    id: str
    index: int
    tokens: tuple[int, ...] = ()
    logprobs: tuple[Logprobs, ...] = ()
    prompt_logprobs: tuple[Logprobs, ...] = ()
    finish: Finish | None = None
    stop_id: int | None = None  # the stop token that ended it, when it was one
    error: str | None = None
    summary: "Summary | None" = None  # with `finish`


class Summary(Struct, frozen=True):
    """Of a finished request, for usage and metrics. Seconds."""

    num_prompt: int
    num_output: int
    num_cached: int
    num_preemptions: int
    queued_s: float
    prefill_s: float
    decode_s: float
