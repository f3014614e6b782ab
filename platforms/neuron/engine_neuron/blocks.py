"""What is done to whole blocks of a cache: clearing them, and copying some to others, for requests
that go on from one another's context.

These are programs too. Copies are of a few pairs or of many, filled up with the block that is
nobody's, onto itself.
"""

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from engine.compiled import ProgramMaker

#: Pairs that one program copies; more take several turns.
SIZES = (4, 32)


class BlockPrograms:
    """Of the caches of one kind of layer."""

    def __init__(self, maker: ProgramMaker, device: str) -> None:
        self._maker = maker
        self._device = device
        self._programs: dict[Hashable, Callable[..., None]] = {}

    def begin(self, keys: Tensor, values: Tensor) -> None:
        """Fill a new cache with zeros, and make what copies its blocks; it is the same for the next
        cache of that size."""
        known = len(self._programs)
        self._program(_clear, keys)(keys, values)
        if len(self._programs) > known:
            for size in SIZES:
                self._turn(keys, values, [], size)

    def copy(self, keys: Tensor, values: Tensor, pairs: Sequence[tuple[int, int]]) -> None:
        """Targets are distinct and no sources, so the order of turns does not matter."""
        most = SIZES[-1]
        for start in range(0, len(pairs), most):
            some = pairs[start : start + most]
            self._turn(keys, values, some, next(size for size in SIZES if size >= len(some)))

    def _turn(
        self, keys: Tensor, values: Tensor, pairs: Sequence[tuple[int, int]], size: int
    ) -> None:
        nobodys = len(keys) - 1
        padded = [*pairs, *[(nobodys, nobodys)] * (size - len(pairs))]
        pairs_2P = torch.tensor(padded, dtype=torch.int64).t().contiguous()
        sources_P, targets_P = (one.to(self._device) for one in pairs_2P)
        self._program(_copy, keys, size)(keys, values, sources_P, targets_P)

    def _program(
        self, compute: Callable[..., None], keys: Tensor, size: int = 0
    ) -> Callable[..., None]:
        key = (compute, keys.shape, size)
        if key not in self._programs:
            self._programs[key] = self._maker.make(compute)
        return self._programs[key]


def _clear(keys: Tensor, values: Tensor) -> None:
    keys.zero_()
    values.zero_()


def _copy(keys: Tensor, values: Tensor, sources_P: Tensor, targets_P: Tensor) -> None:
    keys.index_copy_(0, targets_P, keys.index_select(0, sources_P))
    values.index_copy_(0, targets_P, values.index_select(0, sources_P))
