"""What the sampler remembers of each admitted request, and the part of it that one step needs.

Numbers stay on the host, in arrays with one row a request: a step sends the few that it needs in
one small copy, so that admitting a request starts no work on the device. What a request keeps on
the device is its mask of allowed ids, the only thing as large as the vocabulary.

Shape legend: R rows of the table, M rows of the step's logits, V vocabulary, S sequences
of Q tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntFlag, auto
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from engine.batch import Admission
from engine.ops.filters import Filters
from engine.ops.staging import send
from engine.params import SamplingParams

Indices = NDArray[np.int64]
Numbers: TypeAlias = Sequence[int] | Indices

#: Divisors stay normal numbers of float32: a smaller temperature is as good as greedy.
SMALLEST = float(np.finfo(np.float32).tiny)
NOWHERE: Indices = np.empty(0, dtype=np.int64)
#: In place of a token of a banned sequence: matches every token, or none.
ANY, NONE = -1, -2


class Feature(IntFlag):
    """What a request uses. A step pays for what one of its rows uses, and for nothing else."""

    RANDOM = auto()
    TOP_K = auto()
    TOP_P = auto()
    MIN_P = auto()
    ALLOWED = auto()
    BIAS = auto()
    BANS = auto()  # bad words, or no stop id before `min_tokens`
    PENALTIES = auto()
    LOGPROBS = auto()

    CHANGES_LOGITS = ALLOWED | BIAS | BANS | PENALTIES


#: One column each in the table of numbers.
NUMBERS = (
    "temperature",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)


@dataclass(frozen=True, slots=True)
class Row:
    """What does not fit a column."""

    allowed_V: Tensor | None  # bool, on the device
    bias_ids: Indices
    bias_values: NDArray[np.float32]
    bad_SQ: Indices  # the last of each is banned where the others come before; ANY in front
    stop_ids_S1: Indices
    num_logprobs: int


class Table:
    """The admitted requests, by row."""

    def __init__(
        self, vocab_size: int, max_requests: int, device: str, *, pinned: bool = False
    ) -> None:
        self.vocab_size = vocab_size
        self.device = device
        self.pinned = pinned
        self._rows: list[Row | None] = [None] * max_requests
        self._features_R = np.zeros(max_requests, dtype=np.int64)
        self._numbers = {name: np.zeros(max_requests, dtype=np.float32) for name in NUMBERS}
        self._top_k_R = np.zeros(max_requests, dtype=np.int64)
        self._seeds_R = np.zeros(max_requests, dtype=np.uint64)
        self._first_output_R = np.zeros(max_requests, dtype=np.int64)
        self._min_length_R = np.zeros(max_requests, dtype=np.int64)

    def admit(self, row: int, admission: Admission) -> None:
        params = admission.params
        self._rows[row] = self._make_row(admission)
        self._features_R[row] = int(_features(params, admission.stop_ids, self.vocab_size))
        for name, numbers_R in self._numbers.items():
            numbers_R[row] = getattr(params, name)
        for name in ("temperature", "repetition_penalty"):
            self._numbers[name][row] = max(self._numbers[name][row], SMALLEST)
        self._top_k_R[row] = min(params.top_k, self.vocab_size)
        self._seeds_R[row] = admission.seed
        self._first_output_R[row] = admission.num_prompt
        self._min_length_R[row] = admission.num_prompt + params.min_tokens

    def release(self, row: int) -> None:
        self._rows[row] = None

    def step(self, rows: Numbers, lengths: Numbers) -> "Step":
        return Step(self, np.asarray(rows, dtype=np.int64), np.asarray(lengths, dtype=np.int64))

    def row(self, row: int) -> Row:
        found = self._rows[row]
        assert found is not None, f"row {row} was sampled but not admitted"
        return found

    def _make_row(self, admission: Admission) -> Row:
        params = admission.params
        allowed_V = None
        if params.allowed_token_ids is not None:
            mask_V = np.zeros(self.vocab_size, dtype=np.bool_)
            mask_V[list(params.allowed_token_ids)] = True
            allowed_V = send(mask_V, self.device, pinned=self.pinned)
        return Row(
            allowed_V=allowed_V,
            bias_ids=np.array(list(params.logit_bias), dtype=np.int64),
            bias_values=np.array(list(params.logit_bias.values()), dtype=np.float32),
            bad_SQ=_align(params.bad_token_ids),
            # A model's configuration may name an end of sequence that it has no logit for.
            stop_ids_S1=_align([(id,) for id in admission.stop_ids if id < self.vocab_size]),
            num_logprobs=min(params.logprobs or 0, self.vocab_size),
        )


class Step:
    """The rows of one call, in the order of its logits. A *place* is an index into that order."""

    def __init__(self, table: Table, rows_M: Indices, lengths_M: Indices) -> None:
        self._table = table
        self.rows_M = rows_M
        self.lengths_M = lengths_M
        self._features_M = table._features_R[rows_M]
        self._features = int(np.bitwise_or.reduce(self._features_M))

    def any(self, features: Feature) -> bool:
        """Whether a row uses one of them."""
        return self._features & int(features) != 0

    def places(self, feature: Feature) -> Indices:
        """Where `feature` is used, ascending."""
        if not self.any(feature):
            return NOWHERE
        return np.flatnonzero(self._features_M & int(feature))

    def uses(self, feature: Feature, places: Indices) -> NDArray[np.bool_]:
        used: NDArray[np.bool_] = (self._features_M[places] & int(feature)) != 0
        return used

    def row(self, place: int) -> Row:
        return self._table.row(int(self.rows_M[place]))

    def numbers(self, places: Indices, *names: str) -> NDArray[np.float32]:
        """[names, places]."""
        rows = self.rows_M[places]
        return np.stack([self._table._numbers[name][rows] for name in names])

    def top_k(self, places: Indices) -> Indices:
        return self._table._top_k_R[self.rows_M[places]]

    def filters(self, places: Indices) -> Filters:
        temperature_N, top_p_N, min_p_N = self.numbers(places, "temperature", "top_p", "min_p")
        top_k_N = np.where(self.uses(Feature.TOP_K, places), self.top_k(places), 0)
        return Filters(temperature_N, top_k_N, top_p_N, min_p_N)

    def seeds(self, places: Indices) -> NDArray[np.uint64]:
        return self._table._seeds_R[self.rows_M[places]]

    def first_output(self, places: Indices) -> Indices:
        """The position of the first token after the prompt."""
        return self._table._first_output_R[self.rows_M[places]]

    def too_short(self, place: int) -> bool:
        """Whether `min_tokens` is not reached yet."""
        return bool(self.lengths_M[place] < self._table._min_length_R[self.rows_M[place]])

    def to_device(self, array: NDArray[np.generic]) -> Tensor:
        return send(array, self._table.device, pinned=self._table.pinned)


def _align(sequences: Sequence[Sequence[int]]) -> Indices:
    """[S, Q], padded in front to the longest; Q is at least 1."""
    longest = max((len(sequence) for sequence in sequences), default=1)
    aligned_SQ = np.full((len(sequences), longest), ANY, dtype=np.int64)
    for aligned_Q, sequence in zip(aligned_SQ, sequences, strict=True):
        aligned_Q[longest - len(sequence) :] = sequence
    return aligned_SQ


def _features(params: SamplingParams, stop_ids: tuple[int, ...], vocab_size: int) -> Feature:
    uses = {
        Feature.RANDOM: not params.greedy,
        Feature.TOP_K: 0 < params.top_k < vocab_size,
        Feature.TOP_P: params.top_p < 1,
        Feature.MIN_P: params.min_p > 0,
        Feature.ALLOWED: params.allowed_token_ids is not None,
        Feature.BIAS: bool(params.logit_bias),
        Feature.BANS: bool(params.bad_token_ids or (params.min_tokens and stop_ids)),
        Feature.PENALTIES: params.repetition_penalty != 1
        or params.presence_penalty != 0
        or params.frequency_penalty != 0,
        Feature.LOGPROBS: params.logprobs is not None,
    }
    features = Feature(0)
    for feature, used in uses.items():
        if used:
            features |= feature
    return features
