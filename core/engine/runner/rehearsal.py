"""Steps that nobody asked for, from which one learns what a step needs."""

from collections.abc import Sequence

from engine.batch import Admission, Batch, Slice
from engine.params import SamplingParams


def largest_steps(max_tokens: int, max_requests: int, max_model_len: int) -> list[list[int]]:
    """Prompt lengths of the two steps that need most: few long prompts, and many short ones."""
    whole, rest = divmod(max_tokens, max_model_len)
    few = [max_model_len] * whole + [rest] * (rest > 0)
    count = min(max_requests, max_tokens)
    return [few[:max_requests], [min(max_tokens // count, max_model_len)] * count]


def smaller_step(sizes: Sequence[int], max_tokens: int) -> list[tuple[int, int]]:
    """Of a step of prompts with these lengths, about `max_tokens` tokens: start:stop of each prompt
    that is left. They are the last tokens of a long prompt, or a few of many short prompts, or all
    where they are no more."""
    if sum(sizes) <= max_tokens:
        return [(0, size) for size in sizes]
    count = max(1, max_tokens // sizes[0])
    return [(max(0, size - max_tokens), size) for size in sizes[:count]]


def dummy_batch(
    parts: Sequence[tuple[int, int]], block_size: int, num_blocks: int | None = None
) -> Batch:
    """Tokens start:stop of prompts, sampled with every filter; each in blocks of its own, but that
    a cache of `num_blocks` begins anew where it ends."""
    params = SamplingParams(temperature=1.0, top_p=0.9, top_k=50)
    admitted, slices, taken = [], [], 0
    for key, (start, stop) in enumerate(parts, start=1):
        count = -(-stop // block_size)
        blocks = tuple(i % (num_blocks or i + 1) for i in range(taken, taken + count))
        taken += count
        admitted.append(Admission(-key, (0,) * stop, stop, params, seed=key, stop_ids=()))
        slices.append(Slice(-key, start, stop, True, blocks, 0))
    return Batch(admitted=tuple(admitted), slices=tuple(slices))
