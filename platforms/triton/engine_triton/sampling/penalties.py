"""Penalties on tokens that a request has had: the core's operation `penalize`.

    count    a counter for each token of the vocabulary: 1 if it occurred, 2 more for each time that
             it did in the output
    lower    every score whose counter is not 0

Counters are added to in any order, and a score is changed once, by its own counter alone: the
result is the same each time.

Shape legend: M rows of the step, V vocabulary, P rows that are penalized, Q rows of the table of
tokens, L its length.
"""

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from engine_triton.architecture import Architecture
from engine_triton.sampling.settings import pack

_LARGEST = tl.constexpr(3.4028234663852886e38)


class Penalize:
    def __init__(self, architecture: Architecture) -> None:
        self._launch = architecture.launch("penalize")

    def __call__(
        self,
        scores_MV: Tensor,
        tokens_QL: Tensor,
        places_P: NDArray[np.int64],
        rows_P: NDArray[np.int64],
        lengths_P: NDArray[np.int64],
        firsts_P: NDArray[np.int64],
        repetition_P: NDArray[np.float32],
        frequency_P: NDArray[np.float32],
        presence_P: NDArray[np.float32],
    ) -> Tensor:
        """The scores, changed in place; arguments as the core's table of operations has them."""
        assert scores_MV.stride(1) == 1
        rows, vocab, device = len(places_P), scores_MV.shape[1], scores_MV.device
        if not rows:
            return scores_MV
        settings = pack(
            (places_P, rows_P, lengths_P, firsts_P),
            (repetition_P, frequency_P, presence_P),
            device,
        )
        counters = torch.zeros(rows, vocab, dtype=torch.int32, device=device)
        block, options = self._launch.blocks, self._launch.options
        _count[(rows, triton.cdiv(int(lengths_P.max()), block["BLOCK"]))](
            tokens_QL, counters, settings, rows, *tokens_QL.stride(), vocab, **block, **options
        )
        _lower[(rows, triton.cdiv(vocab, block["BLOCK"]))](
            scores_MV, counters, settings, rows, scores_MV.stride(0), vocab, **block, **options
        )
        return scores_MV


@triton.jit(do_not_specialize=["rows"])
def _count(tokens_ptr, counters_ptr, settings_ptr, rows, stride, step, vocab, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    source = tl.load(settings_ptr + rows + row).to(tl.int64)
    valid = at < tl.load(settings_ptr + 2 * rows + row)
    output = valid & (at >= tl.load(settings_ptr + 3 * rows + row))
    ids = tl.load(tokens_ptr + source * stride + at * step, valid, other=0).to(tl.int64)
    target = counters_ptr + row.to(tl.int64) * vocab + ids
    tl.atomic_or(target, tl.full([BLOCK], 1, tl.int32), valid)
    tl.atomic_add(target, tl.full([BLOCK], 2, tl.int32), output)


@triton.jit(do_not_specialize=["rows"])
def _lower(scores_ptr, counters_ptr, settings_ptr, rows, stride, vocab, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    counters = tl.load(counters_ptr + row.to(tl.int64) * vocab + at, at < vocab, other=0)
    seen = counters > 0
    place = tl.load(settings_ptr + row).to(tl.int64)
    repetition = tl.load(settings_ptr + 4 * rows + row).to(tl.float32, bitcast=True)
    frequency = tl.load(settings_ptr + 5 * rows + row).to(tl.float32, bitcast=True)
    presence = tl.load(settings_ptr + 6 * rows + row).to(tl.float32, bitcast=True)
    scores = tl.load(scores_ptr + place * stride + at, seen, other=0.0)
    scores = tl.where(scores < 0.0, scores * repetition, tl.div_rn(scores, repetition))
    times = counters >> 1
    lowered = scores - (frequency * times.to(tl.float32) + tl.where(times > 0, presence, 0.0))
    lowered = tl.where(lowered > _LARGEST, _LARGEST, lowered)
    tl.store(scores_ptr + place * stride + at, lowered, seen)
