"""The workloads that a worker is given. All greedy, end of sequence ignored, token ids in and out.

Prompts depend on seed, workload and round only: within a round everyone gets the same ones, and no
round finds its prompts in a prefix cache.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Ask = Callable[[Sequence[list[int]], Sequence[int]], float]  # prompts, output tokens -> seconds


@dataclass(frozen=True)
class Size:
    """How much of each workload is run."""

    vocab_size: int
    requests: int = 32
    output_scale: float = 1.0  # of the numbers of output tokens in `mixed`


@dataclass(frozen=True)
class Case:
    """A workload and the one number that comes out of it."""

    described: str
    unit: str
    higher_is_better: bool
    measure: Callable[[Ask, random.Random, Size], float]


def single(ask: Ask, draw: random.Random, size: Size) -> float:
    """Tokens a second after the first: what more tokens take longer than one."""
    first = ask([prompt(draw, 128, size)], [1])
    whole = ask([prompt(draw, 128, size)], [129])
    return 128 / max(whole - first, 1e-9)


def ttft(ask: Ask, draw: random.Random, size: Size) -> float:
    return ask([prompt(draw, 1024, size)], [1])


def mixed(ask: Ask, draw: random.Random, size: Size) -> float:
    prompts, counts = mixture(draw, size.requests, size)
    return sum(counts) / ask(prompts, counts)


def prefix(ask: Ask, draw: random.Random, size: Size) -> float:
    common = prompt(draw, 1024, size)
    prompts = [common + prompt(draw, 32, size) for _ in range(size.requests)]
    counts = [16] * size.requests
    return sum(counts) / ask(prompts, counts)


def mixture(draw: random.Random, requests: int, size: Size) -> tuple[list[list[int]], list[int]]:
    """Prompts of 32 to 512 tokens and how many to make of each, 16 to 256, both uniform."""
    prompts = [prompt(draw, draw.randint(32, 512), size) for _ in range(requests)]
    wanted = [draw.randint(16, 256) for _ in range(requests)]
    return prompts, [max(1, round(count * size.output_scale)) for count in wanted]


def prompt(draw: random.Random, length: int, size: Size) -> list[int]:
    return [draw.randrange(size.vocab_size) for _ in range(length)]


CASES = {
    "single": Case("one stream, 128 prompt tokens, then 128 more", "tok/s", True, single),
    "ttft": Case("one request of 1,024 prompt tokens to its first token", "s", False, ttft),
    "mixed": Case(
        "requests at once, prompts of 32 to 512, outputs of 16 to 256", "output tok/s", True, mixed
    ),
    "prefix": Case(
        "requests at once, 1,024 equal prompt tokens and 32 own, 16 output tokens",
        "output tok/s",
        True,
        prefix,
    ),
}
