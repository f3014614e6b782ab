"""Where a layer is built."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from engine.platform.comm import Communicator
from engine.platform.ops import OpTable


@dataclass(frozen=True, slots=True)
class Site:
    """With which operations, in which dtype, on which device, and as which rank of how many."""

    ops: OpTable
    communicator: Communicator
    dtype: torch.dtype
    device: str

    @property
    def rank(self) -> int:
        return self.communicator.rank

    @property
    def size(self) -> int:
        return self.communicator.size

    def choose(self, name: str, **facts: Any) -> Callable[..., Any]:
        """The operation `name` for a layer of these facts; dtype and device are added."""
        dtype = str(self.dtype).removeprefix("torch.")
        return self.ops.choose(name, dtype=dtype, device=self.device, **facts)
