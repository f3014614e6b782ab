"""Memory of native kernels: results, which a recorded step finds again, and large constant parts.

While a step is recorded its kernels are noted with the addresses they use. So results come from an
arena that outlives the recording: what a dead tensor leaves is used again by later ones of the same
recording, as in the step itself, and by nobody else.
"""

import mmap
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ALIGNMENT = 64

#: Weakly: it may have been freed.
Mapping: TypeAlias = Callable[[], mmap.mmap | None]


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
    """Bytes for what stays: zeros, aligned to pages, taken from the system when they are used."""
    return torch.frombuffer(_map(num_bytes), dtype=torch.uint8)[:num_bytes]


class Shelf:
    """Room for much that stays, one beside the other, aligned to cache lines.

    A mapping is freed when nothing in it is used any more.
    """

    def __init__(self, num_bytes: int) -> None:
        """`num_bytes`: of a mapping, as long as nothing needs a larger one."""
        self._size = num_bytes
        self._mapping: Mapping = lambda: None
        self._used = 0
        self._made: list[Mapping] = []
        self._lock = threading.Lock()

    def allocate(self, num_bytes: int) -> Tensor:
        """Bytes for what stays: zeros."""
        with self._lock:
            mapping = self._mapping()
            if mapping is None or self._used + num_bytes > len(mapping):
                mapping = _map(max(num_bytes, self._size))
                self._mapping, self._used = weakref.ref(mapping), 0
                self._made.append(self._mapping)
            start = self._used
            self._used += -(-num_bytes // ALIGNMENT) * ALIGNMENT
        return torch.frombuffer(mapping, dtype=torch.uint8)[start : start + num_bytes]

    def take_new(self) -> list[Mapping]:
        """The mappings made since they were last asked for."""
        with self._lock:
            made, self._made = self._made, []
        return made


WEIGHTS = Shelf(2**26)


def _map(num_bytes: int) -> mmap.mmap:
    return mmap.mmap(-1, max(1, num_bytes), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def _aligned(size: int) -> NDArray[np.uint8]:
    room = np.empty(size + ALIGNMENT, dtype=np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    return room[start : start + size]
