"""Temperature, top-k, top-p, min-p and the draw: the core's operation `sample`, with no sort.

    chunks      every chunk of every row: its highest score, the sum of its weights
    candidates  scores that may decide a filter, of rows that have one: those above a bound that the
                chunks give
    choose      a row each: the cutoff of top-k and the floor of top-p among the candidates, the
                sums of the chunks above both, a chunk, a token of it

The bound of top-k is the k-th highest of the chunks' highest scores: k scores reach it. That of
top-p is half of (1 - p) * sum / V: weights under twice that sum to less than what may be left out.
Where more scores than there is room for are above it, the whole row is searched.

Shape legend: M rows of the step, V vocabulary, N rows that draw, C chunks, B candidates.
"""

import numpy as np
import torch
import triton
from numpy.typing import NDArray
from torch import Tensor

from engine_triton.architecture import Architecture
from engine_triton.sampling.choosing import choose_token, gather_candidates, weigh_chunks
from engine_triton.sampling.settings import pack
from engine_triton.sampling.weights import CHUNK

#: All sums of a row's chunks are in one program's registers.
MAX_VOCAB = 2**20


def unless(*, vocab_size: int, **_: object) -> str | None:
    """Why a model of these facts is not served."""
    return None if vocab_size <= MAX_VOCAB else f"{vocab_size} tokens are more than {MAX_VOCAB}"


class Sample:
    def __init__(self, architecture: Architecture) -> None:
        self._launch = architecture.launch("sample")

    def __call__(
        self,
        scores_MV: Tensor,
        highest_M: Tensor,
        places_N: NDArray[np.int64],
        temperature_N: NDArray[np.float32],
        top_k_N: NDArray[np.int64],
        top_p_N: NDArray[np.float32],
        min_p_N: NDArray[np.float32],
        uniforms_N2: NDArray[np.float32],
    ) -> Tensor:
        """ids [N] int64 on the device; arguments as the core's table of operations has them."""
        rows, vocab, device = len(places_N), scores_MV.shape[1], scores_MV.device
        ids_N = torch.empty(rows, dtype=torch.int64, device=device)
        if not rows:
            return ids_N
        settings = pack(
            (places_N, top_k_N), (temperature_N, top_p_N, min_p_N, *uniforms_N2.T), device
        )
        scores_MV = scores_MV if scores_MV.stride(1) == 1 else scores_MV.contiguous()
        filtered = bool((top_k_N > 0).any() or (top_p_N < 1).any())
        self._run(scores_MV, highest_M, settings, ids_N, vocab, filtered)
        return ids_N

    def _run(
        self,
        scores_MV: Tensor,
        highest_M: Tensor,
        settings: Tensor,
        ids_N: Tensor,
        vocab: int,
        filtered: bool,
    ) -> None:
        rows, device = len(ids_N), scores_MV.device
        chunks = triton.cdiv(vocab, CHUNK.value)
        room = self._launch.blocks["ROOM"] if filtered else 0
        maxima_NC, sums_NC = (torch.empty(rows, chunks, device=device) for _ in range(2))
        candidates_NB = torch.empty(rows, room, device=device)
        counts_N = torch.empty(rows, dtype=torch.int32, device=device)
        arguments = (
            scores_MV, highest_M, settings, maxima_NC, sums_NC, candidates_NB, counts_N,
            rows, scores_MV.stride(0), vocab, chunks,
        )  # fmt: skip
        constants = {
            "ALL_CHUNKS": triton.next_power_of_2(chunks),
            "CHUNKS": self._launch.blocks["CHUNKS"],
            **self._launch.options,
        }
        tiles = (rows, triton.cdiv(chunks, self._launch.blocks["CHUNKS"]))
        weigh_chunks[tiles](*arguments, **constants)
        if filtered:
            gather_candidates[tiles](*arguments, ROOM=room, **constants)
        choose_token[(rows,)](*arguments, ids_N, ROOM=room, **constants)
