"""Whole blocks copied from one cache to another, or within one: all pairs by one kernel."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine_triton.architecture import Architecture


class BlockCopy:
    """Between caches whose blocks are alike.

    A cache in pinned memory of the host can be source or target: the device reads and writes it
    where it is, and the copy is in order with the stream's other work.
    """

    def __init__(self, architecture: Architecture) -> None:
        launch = architecture.launch("attention_blocks")
        self._words = launch.blocks["WORDS"]
        self._options = launch.options

    def __call__(self, source: Tensor, target: Tensor, pairs_N2: Tensor) -> None:
        """
        Args:
            source: [P, ...], contiguous.
            target: [Q, ...] with blocks of the same shape and dtype.
            pairs_N2: int64 on the device; numbers of a block in `source` and in `target`. Targets
                are distinct; within one cache none is a source.
        """
        pairs = pairs_N2.shape[0]
        if not pairs:
            return
        words_a_block = _words(source).shape[1]
        copy_kernel[(pairs, -(-words_a_block // self._words))](
            _words(source),
            _words(target),
            pairs_N2,
            words_a_block,
            WORDS=self._words,
            **self._options,
        )


def pairs_on(device: torch.device, pairs: Sequence[tuple[int, int]]) -> Tensor:
    """[N, 2] int64, sent without waiting where the device is not the host."""
    made = torch.tensor(pairs, dtype=torch.int64).view(-1, 2)
    if device.type == "cpu":
        return made
    return made.pin_memory().to(device, non_blocking=True)


def _words(cache: Tensor) -> Tensor:
    """[P, words]: blocks as integers, of 32 bits where they are a multiple of it."""
    flat = cache.view(cache.shape[0], -1)
    whole = flat.shape[1] * flat.element_size() % 4 == 0
    return flat.view(torch.int32 if whole else torch.uint8)


@triton.jit
def copy_kernel(source, target, pairs, words_a_block, WORDS: tl.constexpr):
    pair = tl.program_id(0)
    from_block = tl.load(pairs + 2 * pair)
    to_block = tl.load(pairs + 2 * pair + 1)
    words = tl.program_id(1) * WORDS + tl.arange(0, WORDS)
    real = words < words_a_block
    found = tl.load(source + from_block * words_a_block + words, mask=real)
    tl.store(target + to_block * words_a_block + words, found, mask=real)
