"""The reference of the operations that choose tokens; shapes and dtypes are in the package's table.

Shape legend: M rows of the step's scores, V vocabulary, N rows that draw, P rows that are
penalized, Q rows of the token table, L its length, W tokens looked back at.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.ops.draw import draw
from engine.ops.filters import Filters, weigh
from engine.ops.staging import send


def argmax(scores_MV: Tensor) -> tuple[Tensor, Tensor]:
    """A row with a NaN in it has highest NaN and some id."""
    highest_M, ids_M = scores_MV.max(dim=-1)
    return highest_M, ids_M


def sample(
    scores_MV: Tensor,
    highest_M: Tensor,
    places_N: NDArray[np.int64],
    temperature_N: NDArray[np.float32],
    top_k_N: NDArray[np.int64],
    top_p_N: NDArray[np.float32],
    min_p_N: NDArray[np.float32],
    uniforms_N2: NDArray[np.float32],
) -> Tensor:
    """A row without a finite highest score gets some id, and disturbs no other."""
    if len(places_N) != len(scores_MV):
        at_N = send(places_N, scores_MV.device)
        scores_MV, highest_M = scores_MV[at_N], highest_M[at_N]
    weights_NV = weigh(scores_MV, highest_M, Filters(temperature_N, top_k_N, top_p_N, min_p_N))
    return draw(weights_NV, send(uniforms_N2, scores_MV.device))


def penalize(
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
    """Repetition (Keskar et al., 2019, section 4.1), then OpenAI's frequency and presence.

    A token that occurs several times gets the same new score each time: no order of writing shows.
    """
    device, width = scores_MV.device, int(lengths_P.max())
    whole = send(np.stack((places_P, rows_P, lengths_P, firsts_P)), device).unsqueeze(-1)
    places_P1, rows_P1, length_P1, first_P1 = whole
    numbers = send(np.stack((repetition_P, frequency_P, presence_P)), device).unsqueeze(-1)
    repetition_P1, frequency_P1, presence_P1 = numbers
    position_W = torch.arange(width, device=device)
    known_PW = position_W < length_P1
    ids_PW = tokens_QL[rows_P1.squeeze(1), :width].long()
    # Beyond a row's own end its first token stands in: it is penalized anyway.
    ids_PW = torch.where(known_PW, ids_PW, ids_PW[:, :1])
    old_PW = scores_MV[places_P1, ids_PW]
    score_PW = torch.where(old_PW < 0, old_PW * repetition_P1, old_PW / repetition_P1)
    if frequency_P.any() or presence_P.any():
        output_PW = (known_PW & (position_W >= first_P1)).to(score_PW.dtype)
        counts_PV = score_PW.new_zeros(len(places_P), scores_MV.shape[1])
        counts_PW = counts_PV.scatter_add_(1, ids_PW, output_PW).gather(1, ids_PW)
        score_PW -= frequency_P1 * counts_PW + presence_P1 * (counts_PW > 0)
    # A penalty far below 1 may have divided a score beyond float32.
    score_PW.clamp_(max=torch.finfo(score_PW.dtype).max)
    return scores_MV.index_put_((places_P1, ids_PW), score_PW)
