"""The reference of the operations that choose tokens; shapes and dtypes are in the package's table.

Shape legend: M rows of the step's scores, V vocabulary, N rows that draw.
"""

import numpy as np
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
