"""What is asked of every participant: the same prompts, the same numbers of tokens."""

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Workload:
    name: str
    prompts: tuple[tuple[int, ...], ...]
    outputs: tuple[int, ...]  # tokens, each made whatever the model says
    temperature: float = 0.0

    @property
    def prompt_tokens(self) -> int:
        return sum(map(len, self.prompts))

    @property
    def output_tokens(self) -> int:
        return sum(self.outputs)


def nano(sequences: int = 256, longest: int = 1024, vocab_size: int = 10001) -> Workload:
    """That of nano-vllm's `bench.py`: prompts and outputs uniform from 100, seed 0, sampled.

    As it stands it is 142,827 tokens in and 133,966 out. Drawn in the order that it draws in.
    """
    draw = random.Random(0)
    least, highest = min(100, longest), min(10000, vocab_size - 1)

    def prompt() -> tuple[int, ...]:
        return tuple(draw.randint(0, highest) for _ in range(draw.randint(least, longest)))

    prompts = tuple(prompt() for _ in range(sequences))
    outputs = tuple(draw.randint(least, longest) for _ in range(sequences))
    return Workload("bench.py", prompts, outputs, temperature=0.6)


def uniform(
    name: str, sequences: int, tokens_in: int, tokens_out: int, vocab_size: int
) -> Workload:
    """Equal lengths, greedy. Every prompt is another one, so that no prefix was seen before."""
    draw = random.Random(name)
    prompts = tuple(tuple(draw.choices(range(vocab_size), k=tokens_in)) for _ in range(sequences))
    return Workload(name, prompts, (tokens_out,) * sequences)
