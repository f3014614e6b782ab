"""Memory of native kernels: results, which a recorded step finds again, and large constant parts.

While a step is recorded its kernels are noted with the addresses they use. So results come from an
arena that outlives the recording: what a dead tensor leaves is used again by later ones of the same
recording, as in the step itself, and by nobody else.
"""

import mmap
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ALIGNMENT = 64


class NotRecordable(Exception):
    """The model does something in a step that a tape cannot do again."""


class Arena:
    """Memory for the tensors of one recording. Freed as a whole, with the arena."""

    def __init__(self) -> None:
        self._free: list[NDArray[np.uint8]] = []
        self.num_bytes = 0

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        size = dtype.itemsize
        for extent in shape:
            size *= extent
        fitting = [i for i, piece in enumerate(self._free) if piece.nbytes >= size]
        if fitting:
            piece = self._free.pop(min(fitting, key=lambda i: self._free[i].nbytes))
        else:
            piece = _aligned(max(size, ALIGNMENT))
            self.num_bytes += piece.nbytes
        # A view of its own: it dies with the last tensor that uses the piece.
        lent = piece[:size]
        weakref.finalize(lent, self._free.append, piece)
        return torch.from_numpy(lent).view(dtype).view(tuple(shape))


_arena: Arena | None = None


def recording() -> bool:
    return _arena is not None


@contextmanager
def record(arena: Arena) -> Iterator[None]:
    """Results made inside come from `arena`."""
    global _arena
    assert _arena is None, "a recording is under way"
    _arena = arena
    try:
        yield
    finally:
        _arena = None


def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Room for the result of a kernel: contiguous, nothing written."""
    if _arena is not None:
        return _arena.empty(shape, dtype)
    return torch.empty(tuple(shape), dtype=dtype)


def allocate(num_bytes: int) -> Tensor:
    """Bytes for what stays: zeros, aligned to pages, in large ones where the system has them."""
    memory: Any = mmap.mmap(-1, max(1, num_bytes))
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)[:num_bytes]


def _aligned(size: int) -> NDArray[np.uint8]:
    room = np.empty(size + ALIGNMENT, dtype=np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    return room[start : start + size]
