"""Chooses the next token of every request of a step, on the device.

    logits ── process ──→ scores ─┬─ argmax ───→ greedy rows
             (processors)         └─ sample ───→ random rows
                                     (two numbers of (seed, position) a row)

`argmax`, `sample` and `penalize` (of the processors) come from the table of operations: a platform
may have better ones.

What a request gets depends on its own parameters, seed, tokens and logits alone: not on the other
rows of the step, its row number, or on a restart. Nothing here waits for the device but `to_host`.

Shape legend: M rows of the step, V vocabulary, R rows of the token table, L its length, N random
rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from typing import NamedTuple

import torch
from torch import Tensor

from engine.batch import Admission, Logprobs
from engine.ops import fill
from engine.ops.filters import weigh
from engine.platform.ops import OpTable
from engine.sampling.logprobs import Copy, LogprobsTensors, copy_later, gather_logprobs
from engine.sampling.processors import process
from engine.sampling.rng import uniforms
from engine.sampling.state import Feature, Numbers, Step, Table


class Choice(NamedTuple):
    """One row's token on the host."""

    token: int
    logprobs: Logprobs | None  # where the request asked for them
    finite: bool  # False: the token has no meaning


@dataclass(frozen=True, slots=True)
class Sampled:
    """The tokens of one step, on the device."""

    tokens: Tensor  # int64 [M]
    highest: Tensor  # float32 [M]: not finite where the row's logits have NaN or no finite maximum
    logprobs: LogprobsTensors | None = None  # of the rows that asked, in the step's order
    logprobs_counts: tuple[int | None, ...] = ()  # [M] as asked; None: did not ask

    def fetch(self, copy: Copy = copy_later) -> Callable[[], list[Choice]]:
        """Start to bring them to the host, one `Choice` a row; what is returned waits for it."""
        tokens, highest = copy(self.tokens), copy(self.highest)
        asked = [(i, count) for i, count in enumerate(self.logprobs_counts) if count is not None]
        logprobs = (
            self.logprobs.fetch([count for _, count in asked], copy) if self.logprobs else list
        )

        def wait() -> list[Choice]:
            told = dict(zip([i for i, _ in asked], logprobs(), strict=True))
            rows = zip(tokens().tolist(), highest().tolist(), strict=True)
            return [
                Choice(token, told.get(i), True) if isfinite(score) else Choice(token, None, False)
                for i, (token, score) in enumerate(rows)
            ]

        return wait

    def to_host(self) -> list[Choice]:
        """One a row. Waits for the device."""
        return self.fetch()()


class Sampler:
    """Keeps the parameters of admitted requests by row; nothing else outlives a step.

    `ops`: without it, the core's reference operations. `pinned`: as `engine.ops.staging.send` says.
    """

    def __init__(
        self,
        vocab_size: int,
        max_requests: int,
        device: str,
        ops: OpTable | None = None,
        *,
        pinned: bool = False,
    ) -> None:
        self._table = Table(vocab_size, max_requests, device, pinned=pinned)
        if ops is None:
            ops = OpTable()
            fill(ops)
        facts = {"dtype": "float32", "device": device, "vocab_size": vocab_size}
        self._argmax = ops.choose("argmax", **facts)
        self._sample = ops.choose("sample", **facts)
        self._penalize = ops.choose("penalize", **facts)

    def admit(self, row: int, admission: Admission) -> None:
        """Write one row, 0 to max_requests - 1. `check` has passed the parameters."""
        self._table.admit(row, admission)

    def release(self, row: int) -> None:
        self._table.release(row)

    def sample(
        self, logits_MV: Tensor, rows: Numbers, history_RL: Tensor, lengths: Numbers
    ) -> Sampled:
        """The token at position `lengths[i]` of the request in row `rows[i]`.

        `logits_MV` float32, left as it is. `history_RL` holds every request's tokens, prompt then
        output, int32 or int64: the first `lengths[i]` of row `rows[i]` are valid. A row may occur
        more than once, with different lengths. Among equal scores greedy takes the lowest id.
        """
        step = self._table.step(rows, lengths)
        scores_MV = process(logits_MV, step, history_RL, self._penalize)
        highest_M, tokens_M = self._argmax(scores_MV)
        sampled = Sampled(tokens_M, highest_M)
        if scores_MV is not logits_MV:  # a mask may hide what is not finite
            hidden_M = self._argmax(logits_MV)[0]
            sampled = Sampled(tokens_M, torch.where(hidden_M.isfinite(), highest_M, hidden_M))
        places = step.places(Feature.RANDOM)
        if places.size:
            numbers_N2 = uniforms(step.seeds(places), step.lengths_M[places])
            drawn_N = self._sample(scores_MV, highest_M, places, *step.filters(places), numbers_N2)
            tokens_M.index_copy_(0, step.to_device(places), drawn_N)
        return _with_logprobs(sampled, logits_MV, step)

    def distribution(
        self, logits_MV: Tensor, rows: Numbers, history_RL: Tensor, lengths: Numbers
    ) -> Tensor:
        """The probabilities that `sample` draws from: float32 [M, V]; 1 at a greedy row's token."""
        step = self._table.step(rows, lengths)
        scores_MV = process(logits_MV, step, history_RL, self._penalize)
        highest_M, tokens_M = self._argmax(scores_MV)
        found_MV = torch.zeros_like(scores_MV).scatter_(1, tokens_M.unsqueeze(1), 1.0)
        places = step.places(Feature.RANDOM)
        if places.size:
            at_N = step.to_device(places)
            weights_NV = weigh(scores_MV[at_N], highest_M[at_N], step.filters(places))
            found_MV[at_N] = weights_NV / weights_NV.sum(-1, keepdim=True)
        return found_MV


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
    return Sampled(sampled.tokens, sampled.highest, found, tuple(counts))
