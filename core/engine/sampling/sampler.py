"""Chooses the next token of every request of a step, on the device.

    logits ── process ──→ scores ─┬─ highest ───────────────→ greedy rows
             (processors)         └─ weigh ──→ draw ────────→ random rows
                                    (filters) (two numbers of (seed, position) a row)

What a request gets depends on its own parameters, seed, tokens and logits alone: not on the other
rows of the step, its row number, or on a restart. Nothing here waits for the device but `to_host`.

Shape legend: M rows of the step, V vocabulary, R rows of the token table, L its length, N random
rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from engine.batch import Admission, Logprobs
from engine.sampling.draw import draw
from engine.sampling.filters import weigh
from engine.sampling.logprobs import LogprobsTensors, gather_logprobs
from engine.sampling.processors import process
from engine.sampling.rng import uniforms
from engine.sampling.state import Feature, Indices, Step, Table


class Choice(NamedTuple):
    """One row's token on the host."""

    token: int
    logprobs: Logprobs | None  # where the request asked for them
    finite: bool  # False: the token has no meaning


@dataclass(frozen=True, slots=True)
class Sampled:
    """The tokens of one step, on the device."""

    tokens: Tensor  # int64 [M]
    finite: Tensor  # bool [M]: the row's logits have a finite maximum and no NaN
    logprobs: LogprobsTensors | None = None  # of the rows that asked, in the step's order
    logprobs_counts: tuple[int | None, ...] = ()  # [M] as asked; None: did not ask

    def to_host(self) -> list[Choice]:
        """One a row. Waits for the device."""
        tokens, finite = self.tokens.tolist(), self.finite.tolist()
        found: list[Logprobs | None] = [None] * len(tokens)
        if self.logprobs is not None:
            asked = [
                (i, count) for i, count in enumerate(self.logprobs_counts) if count is not None
            ]
            told = self.logprobs.to_host([count for _, count in asked])
            for (i, _), logprobs in zip(asked, told, strict=True):
                found[i] = logprobs if finite[i] else None
        return [Choice(*each) for each in zip(tokens, found, finite, strict=True)]


class Sampler:
    """Keeps the parameters of admitted requests by row; nothing else outlives a step."""

    def __init__(self, vocab_size: int, max_requests: int, device: str) -> None:
        self._table = Table(vocab_size, max_requests, device)

    def admit(self, row: int, admission: Admission) -> None:
        """Write one row, 0 to max_requests - 1. `check` has passed the parameters."""
        self._table.admit(row, admission)

    def release(self, row: int) -> None:
        self._table.release(row)

    def sample(
        self, logits_MV: Tensor, rows: Sequence[int], history_RL: Tensor, lengths: Sequence[int]
    ) -> Sampled:
        """The token at position `lengths[i]` of the request in row `rows[i]`.

        `logits_MV` float32, left as it is. `history_RL` holds every request's tokens, prompt then
        output, int32 or int64: the first `lengths[i]` of row `rows[i]` are valid. A row may occur
        more than once, with different lengths. Among equal scores greedy takes the lowest id.
        """
        step = self._table.step(rows, lengths)
        scores_MV = process(logits_MV, step, history_RL)
        highest_M, tokens_M = scores_MV.max(dim=-1)
        finite_M = highest_M.isfinite()
        if scores_MV is not logits_MV:
            finite_M &= logits_MV.amax(-1).isfinite()  # a mask may hide what is not
        places = step.places(Feature.RANDOM)
        if places.size:
            weights_NV = _weights(scores_MV, highest_M, step, places)
            numbers_N2 = uniforms(step.seeds(places), step.lengths_M[places])
            drawn_N = draw(weights_NV, step.to_device(numbers_N2))
            tokens_M.index_copy_(0, step.to_device(places), drawn_N)
        return _with_logprobs(Sampled(tokens_M, finite_M), logits_MV, step)

    def distribution(
        self, logits_MV: Tensor, rows: Sequence[int], history_RL: Tensor, lengths: Sequence[int]
    ) -> Tensor:
        """The probabilities that `sample` draws from: float32 [M, V]; 1 at a greedy row's token."""
        step = self._table.step(rows, lengths)
        scores_MV = process(logits_MV, step, history_RL)
        highest_M, tokens_M = scores_MV.max(dim=-1)
        found_MV = torch.zeros_like(scores_MV).scatter_(1, tokens_M.unsqueeze(1), 1.0)
        places = step.places(Feature.RANDOM)
        if places.size:
            weights_NV = _weights(scores_MV, highest_M, step, places)
            found_MV[step.to_device(places)] = weights_NV / weights_NV.sum(-1, keepdim=True)
        return found_MV


def _weights(scores_MV: Tensor, highest_M: Tensor, step: Step, places: Indices) -> Tensor:
    if len(places) == len(scores_MV):
        return weigh(scores_MV, highest_M, step, places)
    at_N = step.to_device(places)
    return weigh(scores_MV[at_N], highest_M[at_N], step, places)


def _with_logprobs(sampled: Sampled, logits_MV: Tensor, step: Step) -> Sampled:
    """The same, with the log-probabilities that its rows asked for."""
    places = step.places(Feature.LOGPROBS)
    if not places.size:
        return sampled
    counts: list[int | None] = [None] * len(step.rows_M)
    for place in places:
        counts[place] = step.row(place).num_logprobs
    at_N = step.to_device(places)
    most = max(count for count in counts if count is not None)
    found = gather_logprobs(logits_MV[at_N], sampled.tokens[at_N], most)
    return Sampled(sampled.tokens, sampled.finite, found, tuple(counts))
