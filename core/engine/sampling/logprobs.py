"""Log-probabilities of the model's own, unmodified distribution.

Shape legend: M rows, V vocabulary, K most likely tokens, P positions of a prompt.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.batch import Logprobs

#: Positions of a prompt whose logits exist at once: 64 [V] of float32.
_CHUNK = 64

#: Starts to bring a tensor to the host; what it returns waits for that: `Platform.to_host`.
Copy: TypeAlias = Callable[[Tensor], Callable[[], Tensor]]


def copy_later(x: Tensor) -> Callable[[], Tensor]:
    """For a tensor on the host, or where nothing is gained by an early start."""
    return x.cpu


@dataclass(frozen=True, slots=True)
class LogprobsTensors:
    """On the device. The K most likely tokens, whether or not the chosen one is among them."""

    tokens_M: Tensor  # int64
    logprobs_M: Tensor  # float32
    ranks_M: Tensor  # int64; 1: the most likely
    top_ids_MK: Tensor  # int64, most likely first
    top_logprobs_MK: Tensor  # float32

    def fetch(self, counts: Sequence[int], copy: Copy) -> Callable[[], list[Logprobs]]:
        """Start to bring them to the host: one a row, with the row's own count of most likely
        tokens; what is returned waits for it."""
        columns = [
            copy(each)
            for each in (
                self.tokens_M,
                self.logprobs_M,
                self.ranks_M,
                self.top_ids_MK,
                self.top_logprobs_MK,
            )
        ]

        def wait() -> list[Logprobs]:
            rows = zip(*(column().tolist() for column in columns), counts, strict=True)
            return [
                Logprobs(token, logprob, rank, tuple(zip(ids[:count], top[:count], strict=True)))
                for token, logprob, rank, ids, top, count in rows
            ]

        return wait


def gather_logprobs(logits_MV: Tensor, tokens_M: Tensor, count: int) -> LogprobsTensors:
    """Of `tokens_M` int64, and of the `count` (0 to V) most likely, under float32 logits.

    Tokens of equal logits share the better rank. The logprob of a token that the model rules out
    (logit -inf) is -inf.
    """
    # Relative to the highest logit first: a total near it would round its logprob away.
    highest_M1 = logits_MV.amax(-1, keepdim=True)
    total_M1 = (logits_MV - highest_M1).exp_().sum(-1, keepdim=True).log_()
    logit_M1 = logits_MV.gather(1, tokens_M.unsqueeze(1))
    ranks_M = (logits_MV > logit_M1).sum(-1) + 1
    top_MK, ids_MK = logits_MV.topk(count, dim=-1)
    return LogprobsTensors(
        tokens_M=tokens_M,
        logprobs_M=(logit_M1 - highest_M1 - total_M1).squeeze(1),
        ranks_M=ranks_M,
        top_ids_MK=ids_MK,
        top_logprobs_MK=top_MK - highest_M1 - total_M1,
    )


def prompt_logprobs(
    logits: Callable[[NDArray[np.int64]], Tensor],
    rows_P: NDArray[np.int64],
    following: Sequence[int],
    count: int,
) -> list[Logprobs]:
    """Of each prompt token, given those before it. Waits for the device.

    `logits` gives the float32 logits [m, V] of m rows of a step; `rows_P[p]` is that of position p,
    `following[p]` the token after it, and `count` says how many of the most likely tokens to tell.
    """
    parts = []
    for start in range(0, len(following), _CHUNK):
        logits_MV = logits(rows_P[start : start + _CHUNK])
        tokens_M = torch.tensor(following[start : start + _CHUNK], dtype=torch.int64)
        most = min(count, logits_MV.shape[1])
        parts.append(gather_logprobs(logits_MV, tokens_M.to(logits_MV.device), most))
    waits = [part.fetch([count] * len(part.tokens_M), copy_later) for part in parts]
    return [found for wait in waits for found in wait()]
