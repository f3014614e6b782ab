"""Choosing tokens, by the native kernels: the highest score, and draws from filtered scores.

Signatures and meaning are those of the core's table of operations. Draws keep the same tokens as
the reference and split the unit interval at the same places, but for the rounding of sums: theirs
are float32, these float64. There is no sort, and no copy of the scores.

Shape legend: M rows of the step's scores, V vocabulary, N rows that draw.

Import this only where `engine_cpu.native.available()` is None: it loads the library.
"""

from typing import Any

import numpy as np
import torch
from engine_cpu_kernels import library
from numpy.typing import NDArray
from torch import Tensor

from engine.platform import OpTable
from engine_cpu.native import refuses
from engine_cpu.native.memory import NotRecordable, empty, recording

SOURCE = "cpu-native"
PRIORITY = 20

# Looked up once: an attribute of the library costs more than an argument.
_argmax = library().ek_argmax
_sample = library().ek_sample


def register(table: OpTable) -> None:
    """Add them to a table that the core has filled."""
    for function in (argmax, sample):
        table.register(function.__name__, source=SOURCE, priority=PRIORITY, unless=refuses)(
            function
        )


def argmax(scores_MV: Tensor) -> tuple[Tensor, Tensor]:
    scores_MV = _rows(scores_MV)
    rows, size = scores_MV.shape
    highest_M, ids_M = empty((rows,), torch.float32), empty((rows,), torch.int64)
    if _argmax(
        scores_MV.data_ptr(),
        scores_MV.stride(0),
        size,
        highest_M.data_ptr(),
        ids_M.data_ptr(),
        rows,
    ):
        raise NotRecordable(f"argmax of {rows} rows")
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
    """A row without a finite highest score gets id 0."""
    rows = len(places_N)
    if recording():
        raise NotRecordable("sample: its numbers on the host are not those of the next step")
    scores_MV, highest_M = _rows(scores_MV), highest_M.contiguous()
    numbers = (
        _array(places_N, np.int64, rows),
        _array(temperature_N, np.float32, rows),
        _array(top_k_N, np.int64, rows),
        _array(top_p_N, np.float32, rows),
        _array(min_p_N, np.float32, rows),
        _array(uniforms_N2, np.float32, 2 * rows),
    )
    ids_N = empty((rows,), torch.int64)
    _sample(
        scores_MV.data_ptr(),
        scores_MV.stride(0),
        scores_MV.shape[1],
        highest_M.data_ptr(),
        *[each.ctypes.data for each in numbers],
        ids_N.data_ptr(),
        rows,
    )
    return ids_N


def _rows(scores_MV: Tensor) -> Tensor:
    """With contiguous rows of float32."""
    if scores_MV.dtype != torch.float32:
        raise TypeError(f"scores must be float32, not {scores_MV.dtype}")
    if scores_MV.stride(1) == 1:
        return scores_MV
    if recording():
        raise NotRecordable("a copy of scores whose rows are not contiguous")
    return scores_MV.contiguous()


def _array(numbers: NDArray[Any], dtype: type[np.generic], size: int) -> NDArray[Any]:
    if numbers.size != size:
        raise ValueError(f"sample takes {size} numbers of each kind, not {numbers.size}")
    return np.ascontiguousarray(numbers, dtype)
