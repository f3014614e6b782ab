"""Masks, bias and penalties, in the order that `SamplingParams` fixes.

If bad words and `min_tokens` together leave no token that `allowed_token_ids` allows, they yield
for this token: what is allowed holds, and there is always something to sample.

Shape legend: M rows of the step, V vocabulary, R rows of the token table, L its length, P rows that
use a feature, E entries, Q tokens of the longest banned sequence.
"""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from engine.sampling.state import ANY, NONE, Feature, Indices, Step

#: The operation of that name.
Penalize: TypeAlias = Callable[..., Tensor]


def process(logits_MV: Tensor, step: Step, history_RL: Tensor, penalize: Penalize) -> Tensor:
    """Scores to choose from: float32 [M, V], a new tensor if any row changes something."""
    if not step.any(Feature.CHANGES_LOGITS):
        return logits_MV
    scores_MV = logits_MV.clone()
    if step.any(Feature.ALLOWED):
        _allow(scores_MV, step)
    if step.any(Feature.BIAS):
        _bias(scores_MV, step)
    if step.any(Feature.BANS):
        _ban(scores_MV, step, history_RL)
    if step.any(Feature.PENALTIES):
        _penalize(scores_MV, step, history_RL, penalize)
    return scores_MV


def _allow(scores_MV: Tensor, step: Step) -> None:
    places = step.places(Feature.ALLOWED)
    masks = [step.row(place).allowed_V for place in places]
    allowed_PV = torch.stack([mask for mask in masks if mask is not None])
    places_P = step.to_device(places)
    scores_MV[places_P] = scores_MV[places_P].masked_fill(~allowed_PV, -torch.inf)


def _bias(scores_MV: Tensor, step: Step) -> None:
    places = step.places(Feature.BIAS)
    rows = [step.row(place) for place in places]
    place_E = np.repeat(places, [len(row.bias_ids) for row in rows])
    id_E = np.concatenate([row.bias_ids for row in rows])
    value_E = np.concatenate([row.bias_values for row in rows])
    at = (step.to_device(place_E), step.to_device(id_E))
    scores_MV.index_put_(at, step.to_device(value_E), accumulate=True)


def _ban(scores_MV: Tensor, step: Step, history_RL: Tensor) -> None:
    """Mask the last token of each sequence whose other tokens the request's own end with."""
    place_E, sequence_EQ = _banned_sequences(step)
    if not place_E.size:
        return
    at = (step.to_device(place_E), step.to_device(sequence_EQ[:, -1].copy()))
    banned_E = _matches(step, place_E, sequence_EQ[:, :-1], history_RL)
    before_E = scores_MV[at]
    # Added, as entries of one token may differ: some match and some do not.
    scores_MV.index_put_(at, torch.where(banned_E, -torch.inf, 0.0), accumulate=True)
    none_left_M = scores_MV.amax(-1) == -torch.inf
    after_E = torch.where(none_left_M[at[0]], before_E, scores_MV[at])
    scores_MV.index_put_(at, after_E)


def _banned_sequences(step: Step) -> tuple[Indices, Indices]:
    """Places [E] and sequences [E, Q], padded in front."""
    parts: list[tuple[int, Indices]] = []
    for place in step.places(Feature.BANS):
        row = step.row(place)
        parts.append((place, row.bad_SQ))
        if step.too_short(place):
            parts.append((place, row.stop_ids_S1))
    place_E = np.repeat([place for place, _ in parts], [len(each) for _, each in parts])
    longest = max(each.shape[1] for _, each in parts)
    padded = [
        np.pad(each, ((0, 0), (longest - each.shape[1], 0)), constant_values=ANY)
        for _, each in parts
    ]
    return place_E, np.concatenate(padded)


def _matches(step: Step, place_E: Indices, wanted_EQ: Indices, history_RL: Tensor) -> Tensor:
    """bool [E]: whether the request's last tokens are the wanted ones.

    history   | 5 | 3 | 8 | 2 |      length 4
    wanted        |any| 8 | 2 |
    """
    position_EQ = step.lengths_M[place_E, None] + np.arange(-wanted_EQ.shape[1], 0)
    # Before its first token a request has nothing that could match.
    wanted_EQ = np.where((position_EQ < 0) & (wanted_EQ != ANY), NONE, wanted_EQ)
    row_E1 = step.to_device(step.rows_M[place_E, None])
    found_EQ = history_RL[row_E1, step.to_device(position_EQ.clip(min=0))]
    wanted = step.to_device(wanted_EQ)
    return ((wanted == ANY) | (found_EQ == wanted)).all(-1)


def _penalize(scores_MV: Tensor, step: Step, history_RL: Tensor, penalize: Penalize) -> None:
    places = step.places(Feature.PENALTIES)
    numbers = step.numbers(places, "repetition_penalty", "frequency_penalty", "presence_penalty")
    rows, lengths = step.rows_M[places], step.lengths_M[places]
    penalize(scores_MV, history_RL, places, rows, lengths, step.first_output(places), *numbers)
