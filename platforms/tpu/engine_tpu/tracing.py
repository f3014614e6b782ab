"""torch's operations as jax's: torchax computes them, and weights lie divided over the chips."""

import functools
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import accumulate
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import torch
import torchax
from jax.sharding import PartitionSpec
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only
from torchax.interop import jax_view
from torchax.tensor import Tensor as Traced
from torchax.view import View

from engine_tpu.placement import ROWS, WHOLE, Placement


class Place(Protocol):
    def __call__(
        self, weight: Tensor, spec: PartitionSpec, start: int = 0, stop: int | None = None
    ) -> jax.Array:
        """Rows start:stop of a weight, on the chips."""


def in_jax(
    compute: Callable[..., Tensor], arrays: Sequence[jax.Array], placement: Placement, place: Place
) -> jax.Array:
    """What `compute` makes of the arrays, as tensors; weights that it meets are `place`d."""
    env = torchax.default_env()
    # Under inference mode torch would not take compound operations apart.
    with ExitStack() as modes:
        modes.enter_context(torch.inference_mode(False))
        modes.enter_context(torch.no_grad())
        modes.enter_context(jax.default_matmul_precision("highest"))
        modes.enter_context(env)
        modes.enter_context(_Lifting(placement, place, env))
        result: jax.Array = jax_view(compute(*(Traced(array, env) for array in arrays)))
    return result


class _Projected(Traced):  # type: ignore[misc]  # torchax has no types
    """What a linear layer gives, computed once its use shows how: whole, or in parts."""

    compute: Callable[[Sequence[int]], list[jax.Array]]  # parts of these sizes
    _elem: Any

    def jax(self) -> jax.Array:
        if isinstance(self._elem, jax.ShapeDtypeStruct):
            [self._elem] = self.compute([self.shape[-1]])
        found: jax.Array = self._elem
        return found


class _Lifting(TorchFunctionMode):
    """Puts what is on the chips in the place of weights; of matrices, as they are divided."""

    def __init__(self, placement: Placement, place: Place, env: torchax.tensor.Environment) -> None:
        super().__init__()
        self._placement = placement
        self._place = place
        self._env = env

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is functional.linear and _is_weight(args[1]):
            return self._linear(*args, **kwargs)
        if function in (functional.embedding, torch.embedding) and _is_weight(args[1]):
            weight = self._place(args[1], self._placement.rows(len(args[1])))
            ids = self._lift(args[0]).jax()
            return Traced(jnp.take(weight, ids, axis=0, mode="clip"), self._env)
        if function in _SPLITS and isinstance(args[0], _Projected):
            return self._take_apart(function, *args, **kwargs)
        args, kwargs = tree_map_only(torch.Tensor, self._lift, (args, kwargs))
        return function(*args, **kwargs)

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        array = self._lift(x).jax()
        shape = (*array.shape[:-1], len(weight))
        result = _Projected(jax.ShapeDtypeStruct(shape, array.dtype), self._env)
        result.compute = functools.partial(self._project, array, weight, bias)
        return result

    def _project(
        self, x: jax.Array, weight: Tensor, bias: Tensor | None, parts: Sequence[int]
    ) -> list[jax.Array]:
        out_features, in_features = weight.shape
        if self._placement.by_rows(out_features, in_features, parts):
            pairs = zip(accumulate(parts, initial=0), accumulate(parts), strict=False)
            return [self._rows(x, weight, bias, start, stop) for start, stop in pairs]
        matrix = self._place(weight, self._placement.columns(in_features))
        result = self._placement.constrain(_times(x, matrix), WHOLE)
        if bias is not None:
            result = result + self._place(bias, WHOLE)
        return jnp.split(result, list(accumulate(parts))[:-1], axis=-1)

    def _rows(
        self, x: jax.Array, weight: Tensor, bias: Tensor | None, start: int, stop: int
    ) -> jax.Array:
        result = _times(x, self._place(weight, ROWS, start, stop))
        return result if bias is None else result + self._place(bias, WHOLE, start, stop)

    def _take_apart(self, function: Any, x: _Projected, *args: Any, **kwargs: Any) -> Any:
        """Its parts, computed apart; where it is not along the last dimension, as usual."""

        def split(whole: jax.Array) -> Any:
            return jax_view(function(Traced(whole, self._env), *args, **kwargs))

        sizes = [one.shape[-1] for one in jax.eval_shape(split, x._elem)]
        if sum(sizes) != x.shape[-1]:
            return function(self._lift(x), *args, **kwargs)
        return [Traced(part, self._env) for part in x.compute(sizes)]

    def _lift(self, x: Tensor) -> Any:
        if isinstance(x, _Projected):
            x.jax()
        return Traced(self._place(x, WHOLE), self._env) if _is_weight(x) else x


_SPLITS = (torch.split, torch.chunk, torch.Tensor.split, torch.Tensor.chunk)


def _is_weight(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and not isinstance(x, Traced | View)


def _times(x: jax.Array, weight_OI: jax.Array) -> jax.Array:
    return jax.lax.dot_general(
        x, weight_OI, (((x.ndim - 1,), (1,)), ((), ())), preferred_element_type=x.dtype
    )
