"""Between torch's tensors and jax's arrays."""

from typing import Any, TypeAlias

import jax
import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_map_only
from torchax.tensor import Tensor as Traced
from torchax.view import View

Array: TypeAlias = jax.Array | NDArray[Any]

#: torch's 64-bit integers are ids, positions and slots here: 32 bits hold them.
NARROW = {torch.int64: torch.int32, torch.float64: torch.float32}


class ChipTensor(Tensor):
    """The first `count` rows of an array; a tensor of the host to all others.

    The platform's own parts take `array`, which has the bucket's rows. Any other operation makes
    them come to the host, once.
    """

    array: jax.Array
    _here: Tensor | None

    @staticmethod
    def __new__(cls, array: jax.Array, count: int) -> "ChipTensor":
        shape, dtype = (count, *array.shape[1:]), getattr(torch, array.dtype.name)
        made: ChipTensor = Tensor._make_wrapper_subclass(cls, shape, dtype=dtype)
        made.array, made._here = array, None
        return made

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


def to_jax(x: Tensor) -> Array:
    """Where it is: on the chips, or on the host, 64 bits made 32."""
    if isinstance(x, Traced | View):
        array: jax.Array = x.jax()
        return array
    if isinstance(x, ChipTensor):
        return x.array
    x = x.detach().contiguous()
    if x.dtype == torch.bfloat16:
        bits: NDArray[Any] = x.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return bits
    return x.to(NARROW.get(x.dtype, x.dtype)).numpy()


def to_torch(array: jax.Array) -> Tensor:
    """On the host; waits for it."""
    found = np.array(array)
    if found.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(found.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(found)


def _first_rows(x: Tensor, dim: int = 0, start: int | None = 0, *rest: int) -> bool:
    return dim == 0 and not start and len(rest) == 1 and rest[0] >= 0
