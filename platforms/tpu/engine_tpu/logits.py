"""Logits that stay on the chips until torch computes with them."""

from typing import Any

import jax
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from engine_tpu.arrays import to_torch


class ChipLogits(Tensor):
    """The first `count` rows of an array, [count, V] float32; a tensor of the host to all others.

    The platform's own operations take `array`, which has the bucket's rows. Any other operation
    makes them come to the host, once.
    """

    array: jax.Array

    @staticmethod
    def __new__(cls, array: jax.Array, count: int) -> "ChipLogits":
        shape = (count, array.shape[1])
        made: ChipLogits = Tensor._make_wrapper_subclass(cls, shape, dtype=torch.float32)
        made.array = array
        made._here = None
        return made

    _here: Tensor | None

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is torch.ops.aten.slice.Tensor and _first_rows(*args):
            return cls(args[0].array, min(args[3], len(args[0])))
        args, kwargs = tree_map_only(cls, lambda x: x.on_host(), (args, kwargs or {}))
        return function(*args, **kwargs)

    def on_host(self) -> Tensor:
        if self._here is None:
            self._here = to_torch(self.array)[: len(self)]
        return self._here


def _first_rows(x: Tensor, dim: int = 0, start: int | None = 0, *rest: int) -> bool:
    return dim == 0 and not start and len(rest) == 1 and rest[0] >= 0
