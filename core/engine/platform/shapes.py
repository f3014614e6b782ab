"""Static shapes: what a step may look like on a device whose programs are compiled beforehand.

A step computes T tokens of N requests, the longest of which has a block table of B entries. A
device with static shapes has a program for some (T, N, B); a step takes the smallest that holds it
and is padded to it.

    decode step:   every request computes one token        T = N, one of `decodes`
    other steps:   prompts, or parts of them               T of `tokens`, N of `requests`
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from engine.errors import ConfigError


@dataclass(frozen=True, slots=True, order=True)
class Shape:
    """One program's. `decode`: each of its requests computes one token."""

    tokens: int
    requests: int
    blocks: int  # entries of each request's block table
    decode: bool = False

    def __str__(self) -> str:
        kind = "decode" if self.decode else f"{self.tokens} tokens"
        return f"{kind} of {self.requests} requests over {self.blocks} blocks"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLimits:
    """The largest step that the settings ask for."""

    max_tokens: int
    max_requests: int
    max_model_len: int  # tokens of one request
    block_size: int  # tokens
    fingerprint: str = ""  # of all else that decides a program: model, dtypes, versions

    @property
    def max_blocks(self) -> int:
        """Of one request."""
        return -(-self.max_model_len // self.block_size)


@dataclass(frozen=True, slots=True)
class Load:
    """Requests together, at the greatest length that they may reach."""

    requests: int = 0
    tokens: int = 0
    blocks: int = 0

    def __add__(self, other: "Load") -> "Load":
        return Load(
            self.requests + other.requests, self.tokens + other.tokens, self.blocks + other.blocks
        )


@dataclass(frozen=True, kw_only=True)
class ShapeBuckets:
    """The shapes that a platform has programs for: every combination of the sizes below.

    A platform may subclass it: `shapes` for fewer combinations, `cost` for a device on which
    padding costs something else, `admit` for limits of its own.

    Raises:
        ConfigError: sizes that are none, not positive or not ascending.
    """

    tokens: tuple[int, ...]  # of a step that holds a prompt, ascending
    requests: tuple[int, ...]  # of such a step
    decodes: tuple[int, ...]  # requests of a decode step
    blocks: tuple[int, ...]  # entries of a block table
    step_cost: float = 0.0  # what any step costs beside its tokens, in tokens
    missing: Literal["error", "compile"] = "error"  # what a step without a program leads to
    pad_block: int | None = None  # in block tables; None: a block that nobody reads
    pad_slot: int | None = None  # of tokens that are padding; None: in that block

    def __post_init__(self) -> None:
        for name in ("tokens", "requests", "decodes", "blocks"):
            sizes = getattr(self, name)
            if not sizes or sizes[0] < 1 or list(sizes) != sorted(set(sizes)):
                raise ConfigError(f"buckets of {name} must be positive and ascend, got {sizes}")

    @classmethod
    def doubling(
        cls,
        limits: StepLimits,
        *,
        smallest_tokens: int = 16,
        smallest_blocks: int = 4,
        step_cost: float = 0.0,
        missing: Literal["error", "compile"] = "error",
    ) -> "ShapeBuckets":
        """Sizes that double, up to the limits themselves."""
        return cls(
            tokens=doubled(smallest_tokens, limits.max_tokens),
            requests=(limits.max_requests,),
            decodes=doubled(1, limits.max_requests),
            blocks=doubled(smallest_blocks, limits.max_blocks),
            step_cost=step_cost,
            missing=missing,
        )

    def check(self, limits: StepLimits, *, whole_prompts: bool) -> None:
        """
        Raises:
            ConfigError: a context that the settings allow has no bucket.
        """
        largest = self.blocks[-1]
        if largest < limits.max_blocks:
            raise ConfigError(
                f"the largest bucket has {largest} blocks of {limits.block_size} tokens, and"
                f" max_model_len {limits.max_model_len} needs {limits.max_blocks}; ask for a"
                " shorter context"
            )
        if whole_prompts and self.tokens[-1] < limits.max_model_len:
            raise ConfigError(
                f"the largest bucket has {self.tokens[-1]} tokens, and this device computes"
                f" prompts whole: max_model_len {limits.max_model_len} is too long; ask for a"
                " shorter context"
            )

    def shapes(self) -> tuple[Shape, ...]:
        """Every program, in the order to warm them up: the largest first, as memory wants it."""
        found = [Shape(n, n, b, True) for n in self.decodes for b in self.blocks]
        found += [Shape(t, n, b) for t in self.tokens for n in self.requests for b in self.blocks]
        return tuple(sorted(found, reverse=True))

    def cost(self, shape: Shape) -> float:
        """Of one step of this shape, in tokens. Only ratios count."""
        return shape.tokens + self.step_cost

    def admit(self, candidate: Load, running: Load) -> bool:
        """Whether a request may join those that run. One that is refused alone is refused."""
        return True

    def fit(self, tokens: int, requests: int, blocks: int, *, decode: bool) -> Shape | None:
        """The cheapest shape that holds such a step."""
        fitting = (
            one
            for one in self._shapes
            if one.decode == decode
            and one.tokens >= tokens
            and one.requests >= requests
            and one.blocks >= blocks
        )
        return min(fitting, key=lambda one: (self.cost(one), one), default=None)

    def fill(self, demand: int) -> int:
        """How many of `demand` tokens the next step should compute, when it may leave some.

        What all of them cost in the end decides: 129 tokens are computed at once where the bucket
        of 256 is cheaper than one of 128 and a small one, and else 128 of them.
        """
        if demand >= self.tokens[-1]:
            return self.tokens[-1]
        return min(demand, self._first_bucket[demand])

    @cached_property
    def _shapes(self) -> tuple[Shape, ...]:
        return self.shapes()

    @cached_property
    def _first_bucket(self) -> list[int]:
        """By demand: the bucket of the first step of the cheapest way."""
        costs = {t: self.cost(Shape(t, self.requests[0], self.blocks[0])) for t in self.tokens}
        cheapest, first = [0.0], [0]
        for demand in range(1, self.tokens[-1]):
            ways = [(cost + cheapest[max(0, demand - size)], -size) for size, cost in costs.items()]
            cost, size = min(ways)
            cheapest.append(cost)
            first.append(-size)
        return first


def doubled(smallest: int, most: int) -> tuple[int, ...]:
    """smallest, twice that and so on, and `most`."""
    sizes, size = [], smallest
    while size < most:
        sizes.append(size)
        size *= 2
    return (*sizes, most)
