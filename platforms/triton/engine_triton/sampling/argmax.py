"""The highest score of each row, and the lowest id that has it.

    row    |.... split 0 ....|.... split 1 ....|.. split 2 ..|     a program each
    merge  the highest of the splits; of equals the first

A step of many rows needs no splits to keep every processor at work: then one kernel is all.

Shape legend: M rows, V vocabulary, S splits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine_triton.architecture import Architecture
from engine_triton.sampling.order import HIGHEST, LOWEST, key_of, score_of

_BLOCKS_PER_PROCESSOR = 2
_MOST_SPLITS = 64


class Argmax:
    def __init__(self, architecture: Architecture) -> None:
        self._launch = architecture.launch("argmax")
        self._merge = architecture.launch("argmax_merge")
        self._programs = _BLOCKS_PER_PROCESSOR * architecture.processors

    def __call__(self, scores_MV: Tensor) -> tuple[Tensor, Tensor]:
        """scores [M, V] float32 -> highest [M] float32, ids [M] int64.

        A row with a NaN in it has highest NaN, and the id of the first of them.
        """
        scores_MV = scores_MV if scores_MV.stride(1) == 1 else scores_MV.contiguous()
        rows, vocab = scores_MV.shape
        highest_M, ids_M = _outputs(scores_MV, rows)
        if not rows:
            return highest_M, ids_M
        block = self._launch.blocks["BLOCK"]
        wanted = min(_MOST_SPLITS, max(1, self._programs // rows))
        span = triton.cdiv(triton.cdiv(vocab, wanted), block) * block
        splits = triton.cdiv(vocab, span)
        parts = (highest_M, ids_M) if splits == 1 else _outputs(scores_MV, rows, splits)
        _argmax[(rows, splits)](
            scores_MV, *parts, scores_MV.stride(0), vocab, span,
            **self._launch.blocks, **self._launch.options,
        )  # fmt: skip
        if splits > 1:
            _merge[(rows,)](
                *parts, highest_M, ids_M, splits,
                SPLITS=triton.next_power_of_2(splits), **self._merge.options,
            )  # fmt: skip
        return highest_M, ids_M


def _outputs(scores_MV: Tensor, *shape: int) -> tuple[Tensor, Tensor]:
    return (
        torch.empty(shape, dtype=torch.float32, device=scores_MV.device),
        torch.empty(shape, dtype=torch.int64, device=scores_MV.device),
    )


@triton.jit(do_not_specialize=["span"])
def _argmax(scores_ptr, highest_ptr, id_ptr, stride, vocab, span, BLOCK: tl.constexpr):
    """Programs (M, S). The highest of each lane is kept: one reduction at the end."""
    row, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    best = tl.full([BLOCK], LOWEST, tl.int32)
    ids = tl.zeros([BLOCK], tl.int32)
    for start in range(split * span, tl.minimum((split + 1) * span, vocab), BLOCK):
        at = start + tl.arange(0, BLOCK)
        scores = tl.load(scores_ptr + row * stride + at, at < vocab, other=0.0)
        keys = tl.where(at < vocab, key_of(scores), LOWEST)
        ids = tl.where(keys > best, at, ids)
        best = tl.maximum(keys, best)
    _store_first(best, ids, highest_ptr, id_ptr, row * tl.num_programs(1) + split)


@triton.jit(do_not_specialize=["splits"])
def _merge(part_ptr, part_id_ptr, highest_ptr, id_ptr, splits, SPLITS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, SPLITS)
    highest = tl.load(part_ptr + row * splits + at, at < splits, other=0.0)
    keys = tl.where(at < splits, key_of(highest), LOWEST)
    ids = tl.load(part_id_ptr + row * splits + at, at < splits, other=0).to(tl.int32)
    _store_first(keys, ids, highest_ptr, id_ptr, row)


@triton.jit
def _store_first(keys, ids, highest_ptr, id_ptr, place):
    highest = tl.max(keys, axis=0)
    first = tl.min(tl.where(keys == highest, ids, HIGHEST), axis=0)
    tl.store(highest_ptr + place, score_of(highest))
    tl.store(id_ptr + place, first.to(tl.int64))
