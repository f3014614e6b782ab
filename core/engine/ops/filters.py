"""Temperature, top-k, top-p and min-p: from scores to the weights that a token is drawn from.

Every filter becomes a floor under the weights, and tokens tied with the last one kept are kept too
(as in transformers' top-k). So what is kept depends on a row's own scores alone, never on a sort's
order or on the other rows of the step. Weights are relative to the most likely token's, which has
weight 1 and always stays.

Top-p compares sums. They are taken in whole numbers, units of 2**-40 of the most likely token, so
that they do not depend on the order of adding, which differs with shapes and devices.

Shape legend: N rows, V vocabulary, A rows that use a filter, K the largest top-k, G rows of a
group, D values of a digit.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.ops.draw import chunk_sums
from engine.ops.staging import send

_UNITS = 2.0**40  # float32 weights from 2**-16 up are whole numbers of these
_DIGIT_BITS = 10
_NUM_DIGITS = 2**_DIGIT_BITS
#: The bits of a float32 from 0 to 1, read as a whole number, are below 2**30: three digits.
_SHIFTS = (20, 10, 0)
#: Rows whose nucleus is searched at once: bounds the memory to a few int64 [16, V].
_GROUP = 16


class Filters(NamedTuple):
    """Of each row, on the host: what a row uses decides what is computed, without a wait."""

    temperature_N: NDArray[np.float32]  # above 0
    top_k_N: NDArray[np.int64]  # 0: off; at most V
    top_p_N: NDArray[np.float32]  # 1: off
    min_p_N: NDArray[np.float32]  # 0: off


def weigh(scores_NV: Tensor, highest_N: Tensor, filters: Filters) -> Tensor:
    """Weights proportional to the probabilities: float32 [N, V] in [0, 1].

    `highest_N` are the maxima of `scores_NV`. A row without a finite maximum gets weights without
    meaning, and disturbs no other.
    """
    device = scores_NV.device
    numbers = np.stack((filters.temperature_N, filters.top_p_N, filters.min_p_N))
    temperature_N1, top_p_N1, floor_N1 = send(numbers, device).unsqueeze(-1)
    weights_NV = (scores_NV - highest_N.unsqueeze(1)).div_(temperature_N1).exp_()
    with_k, with_p = filters.top_k_N > 0, filters.top_p_N < 1
    if with_k.any():
        at_A = send(np.flatnonzero(with_k), device)
        ids_AK = _keep_top_k(weights_NV, scores_NV, at_A, filters.top_k_N[with_k])
    if with_p.any():
        target_N1 = _target(weights_NV, top_p_N1)
        if (both := with_k & with_p).any():
            at_A = send(np.flatnonzero(both), device)
            candidates_AK = weights_NV[
                at_A.unsqueeze(1), ids_AK[send(np.flatnonzero(with_p[with_k]), device)]
            ]
            _lift(floor_N1, at_A, _nucleus_of_sorted(candidates_AK, target_N1[at_A]))
        alone = np.flatnonzero(with_p & ~with_k)
        for start in range(0, len(alone), _GROUP):
            at_G = send(alone[start : start + _GROUP], device)
            _lift(floor_N1, at_G, _nucleus(weights_NV[at_G], target_N1[at_G]))
    if with_p.any() or filters.min_p_N.any():
        weights_NV.masked_fill_(weights_NV < floor_N1, 0.0)
    return weights_NV


def _lift(floor_N1: Tensor, at_A: Tensor, other_A1: Tensor) -> None:
    floor_N1[at_A] = torch.maximum(floor_N1[at_A], other_A1)


def _keep_top_k(
    weights_NV: Tensor, scores_NV: Tensor, at_A: Tensor, k_A: NDArray[np.int64]
) -> Tensor:
    """Zero the weights under each row's k-th score; return ids, most likely first: [A, K]."""
    scores_AV = scores_NV if len(k_A) == len(scores_NV) else scores_NV[at_A]
    highest_AK, ids_AK = scores_AV.topk(int(k_A.max()), dim=-1)
    cutoff_N1 = scores_NV.new_full((len(scores_NV), 1), -torch.inf)
    cutoff_N1[at_A] = highest_AK.gather(1, send(k_A - 1, scores_NV.device).unsqueeze(1))
    weights_NV.masked_fill_(scores_NV < cutoff_N1, 0.0)
    return ids_AK


def _target(weights_NV: Tensor, top_p_N1: Tensor) -> Tensor:
    """The units that a nucleus must reach: int64 [N, 1], at least 1."""
    total_N1 = (chunk_sums(weights_NV) * _UNITS).long().sum(-1, keepdim=True)
    return (top_p_N1 * total_N1.float()).long().clamp(min=1)


def _nucleus_of_sorted(candidates_AK: Tensor, target_A1: Tensor) -> Tensor:
    """[A, 1]: the smallest weight of the nucleus, which lies within the candidates.

    Where rounding leaves the candidates short of the target, all of them are the nucleus.
    """
    units_AK = (candidates_AK * _UNITS).long()
    before_AK = units_AK.cumsum(-1) - units_AK
    return candidates_AK.masked_fill(before_AK >= target_A1, torch.inf).amin(-1, keepdim=True)


def _nucleus(weights_GV: Tensor, target_G1: Tensor) -> Tensor:
    """[G, 1]: the smallest weight of the nucleus, found without a sort.

    The bits of a positive float32, read as a whole number, order as the floats do. So the floor's
    bits can be found digit by digit: sum the weights of each value of the digit, and take the value
    at which the sum from the top reaches the target.

        first digit    | 0 | 1 | ... | 1011 | 1012 | ... | 1016 |
        sum from top                  >= target   < target            1011: look inside it

    Where rounding leaves the target out of reach, the floor is 0: all are the nucleus.
    """
    bits_GV = weights_GV.view(torch.int32)
    units_GV = (weights_GV * _UNITS).long()  # of those that begin with the digits so far
    found_G1 = torch.zeros_like(target_G1, dtype=torch.int32)  # the digits so far
    above_G1 = torch.zeros_like(target_G1)  # units of the weights above those
    for shift in _SHIFTS:
        if shift != _SHIFTS[0]:
            units_GV.mul_((bits_GV >> (shift + _DIGIT_BITS)) == found_G1)
        digit_GV = (bits_GV >> shift).bitwise_and_(_NUM_DIGITS - 1).long()
        sums_GD = units_GV.new_zeros(len(units_GV), _NUM_DIGITS).scatter_add_(1, digit_GV, units_GV)
        from_top_GD = above_G1 + sums_GD.flip(-1).cumsum(-1).flip(-1)
        digit_G1 = (from_top_GD >= target_G1).sum(-1, keepdim=True).sub_(1).clamp_(min=0)
        above_G1 = (from_top_GD - sums_GD).gather(1, digit_G1)
        found_G1 = (found_G1 << _DIGIT_BITS) | digit_G1.int()
    return found_G1.view(torch.float32)
