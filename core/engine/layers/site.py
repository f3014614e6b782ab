"""Where a layer is built."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from engine.platform.comm import Communicator
from engine.platform.ops import OpTable


class Quantized(Protocol):
    """What a factory makes of weights that it quantizes."""

    num_bytes: int  # kept instead of the weights


class Tally:
    """Bytes of weights that quantization saved, while layers are built."""

    def __init__(self) -> None:
        self.num_bytes_saved = 0


@dataclass(frozen=True, slots=True)
class Site:
    """With which operations, in which dtype, on which device, and as which rank of how many."""

    ops: OpTable
    communicator: Communicator
    dtype: torch.dtype
    device: str
    quantization: str | None = None  # of linear layers
    tally: Tally = field(default_factory=Tally)

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

    def choose_factory(self, name: str, **facts: Any) -> Callable[..., Any]:
        """As `choose`, for weights of linear layers: quantized where the site says so."""
        return self.choose(name, quantization=self.quantization, **facts)

    def count(self, made: Quantized, *weights: Tensor) -> None:
        """Note what a factory made of `weights`; without quantization nothing is saved."""
        if self.quantization is not None:
            self.tally.num_bytes_saved += sum(one.nbytes for one in weights) - made.num_bytes

    def keep(self, weight: Tensor) -> None:
        """Note that a weight that was counted is still held for something else."""
        if self.quantization is not None:
            self.tally.num_bytes_saved -= weight.nbytes
