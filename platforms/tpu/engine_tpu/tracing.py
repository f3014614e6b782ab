"""A function of torch tensors as a function of jax's arrays: what it finds beside its arguments,
weights and caches, becomes arguments of the program.

torch's operations are computed by torchax, in jax, while jax traces. A weight that an operation
meets is noted when it is first met, and is an argument from then on:

    discover    compute(inputs) ──→ which weights and caches it uses, in which order
    trace       step(weights, caches, inputs) ──→ (results, caches)      caches are donated
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import torch
import torchax
from jax.sharding import PartitionSpec
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only
from torchax.tensor import Tensor as Traced

from engine_tpu.arrays import jax_dtype
from engine_tpu.placement import ROWS, WHOLE, Placement


class Pages:
    """One layer's cache: an array that is replaced, never changed."""

    def __init__(self, array: jax.Array) -> None:
        self.array = array


@dataclass(frozen=True, slots=True)
class Weight:
    """Rows of a tensor that is none of a program's arguments, and how it lies on the chips."""

    tensor: Tensor
    start: int
    stop: int
    spec: PartitionSpec

    @property
    def key(self) -> tuple[int, int, int, PartitionSpec]:
        return id(self.tensor), self.start, self.stop, self.spec

    @property
    def part(self) -> Tensor:
        return self.tensor if self.tensor.dim() == 0 else self.tensor[self.start : self.stop]


@dataclass(slots=True)
class Found:
    """In the order in which they are arguments."""

    weights: list[Weight] = field(default_factory=list)
    pages: list[Pages] = field(default_factory=list)
    #: Of fused projections, by the weight's id: how what they give is taken apart.
    parts: dict[int, tuple[int, ...]] = field(default_factory=dict)


Compute: TypeAlias = Callable[..., Any]  # torch tensors to a torch tensor, or to nested ones


class Tracer:
    """One for a platform. Backends ask it for the cache that they are handed, while it traces."""

    def __init__(self, placement: Placement) -> None:
        self.placement = placement
        self._environment = torchax.default_env()
        self._trace: _Trace | None = None

    @property
    def tracing(self) -> bool:
        return self._trace is not None

    def read(self, pages: Pages) -> jax.Array:
        """The cache as it is at this place of the program; outside of one, as it is now."""
        return pages.array if self._trace is None else self._trace.pages(pages)

    def write(self, pages: Pages, array: jax.Array) -> None:
        if self._trace is None:
            pages.array = array
        else:
            self._trace.write(pages, array)

    def discover(self, compute: Compute, inputs: Sequence[jax.ShapeDtypeStruct]) -> Found:
        """Twice: how projections are divided follows from how their results are used."""
        parts: dict[int, tuple[int, ...]] = {}
        for _ in range(2):
            found = Found(parts=parts)

            def step(*arrays: jax.Array, found: Found = found) -> Any:
                return self._apply(_Discovery(self.placement, found), compute, arrays)

            jax.eval_shape(step, *inputs)
        return found

    def function(self, compute: Compute, found: Found) -> Callable[..., Any]:
        """(weights, caches, *inputs) -> (result, caches), to be traced by jax."""

        def step(
            weights: Sequence[jax.Array], caches: Sequence[jax.Array], *inputs: jax.Array
        ) -> Any:
            keys = [one.key for one in found.weights]
            trace = _Binding(
                self.placement,
                found,
                dict(zip(keys, weights, strict=True)),
                dict(zip(found.pages, caches, strict=True)),
            )
            result = self._apply(trace, compute, inputs)
            return result, [trace.bound[one] for one in found.pages]

        return step

    def _apply(self, trace: "_Trace", compute: Compute, arrays: Sequence[jax.Array]) -> Any:
        env, outer = self._environment, self._trace
        self._trace = trace
        try:
            # Under inference mode torch would not take compound operations apart.
            with ExitStack() as modes:
                modes.enter_context(torch.inference_mode(False))
                modes.enter_context(torch.no_grad())
                modes.enter_context(jax.default_matmul_precision("highest"))
                modes.enter_context(env)
                modes.enter_context(_Lifting(trace, env))
                result = compute(*(Traced(array, env) for array in arrays))
            return tree_map_only(torch.Tensor, lambda x: x.jax(), result)
        finally:
            self._trace = outer


class _Trace:
    """What weights and caches stand for while a function is traced."""

    def __init__(self, placement: Placement, found: Found) -> None:
        self.placement = placement
        self.found = found

    def weight(self, tensor: Tensor, spec: PartitionSpec, start: int = 0, stop: int = -1) -> Any:
        """Rows start:stop of it; all of them by default."""
        count = len(tensor) if tensor.dim() else 1
        return self._find(Weight(tensor, start, count if stop < 0 else stop, spec))

    def _find(self, weight: Weight) -> jax.Array:
        raise AssertionError("the subclass's")

    def pages(self, pages: Pages) -> jax.Array:
        raise AssertionError("the subclass's")

    def write(self, pages: Pages, array: jax.Array) -> None:
        raise AssertionError("the subclass's")


class _Discovery(_Trace):
    """Notes what it is asked for. Values do not matter."""

    def __init__(self, placement: Placement, found: Found) -> None:
        super().__init__(placement, found)
        self._known: dict[Any, jax.Array] = {}

    def _find(self, weight: Weight) -> jax.Array:
        if weight.key not in self._known:
            part = weight.part
            self._known[weight.key] = jnp.zeros(tuple(part.shape), jax_dtype(part.dtype))
            self.found.weights.append(weight)
        return self._known[weight.key]

    def pages(self, pages: Pages) -> jax.Array:
        if pages not in self.found.pages:
            self.found.pages.append(pages)
        return jnp.zeros(pages.array.shape, pages.array.dtype)

    def write(self, pages: Pages, array: jax.Array) -> None:
        assert pages in self.found.pages, "a cache is read before it is written"


class _Binding(_Trace):
    """Hands out the program's arguments."""

    def __init__(
        self,
        placement: Placement,
        found: Found,
        weights: dict[Any, jax.Array],
        bound: dict[Pages, jax.Array],
    ) -> None:
        super().__init__(placement, found)
        self._weights = weights
        self.bound = bound

    def _find(self, weight: Weight) -> jax.Array:
        return self._weights[weight.key]

    def pages(self, pages: Pages) -> jax.Array:
        return self.bound[pages]

    def write(self, pages: Pages, array: jax.Array) -> None:
        self.bound[pages] = array


class _Lifting(TorchFunctionMode):
    """Puts arguments in the place of weights; of matrices, as they lie on the chips."""

    def __init__(self, trace: _Trace, env: torchax.tensor.Environment) -> None:
        super().__init__()
        self._trace = trace
        self._env = env
        self._fused: dict[int, tuple[Tensor, Tensor, list[Tensor]]] = {}  # by the result's id

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is functional.linear and _is_weight(args[1]):
            return self._linear(*args, **kwargs)
        if function in (functional.embedding, torch.embedding) and _is_weight(args[1]):
            spec = self._trace.placement.rows(len(args[1]))
            ids, weight = self._lift(args[0]), self._weight(args[1], spec)
            return Traced(jnp.take(weight.jax(), ids.jax(), axis=0, mode="clip"), self._env)
        if function in _SPLITS and args[0] is not None and id(args[0]) in self._fused:
            return self._take_apart(function, args, kwargs)
        args, kwargs = tree_map_only(torch.Tensor, self._lift, (args, kwargs))
        return function(*args, **kwargs)

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        placement, array = self._trace.placement, self._lift(x).jax()
        out_features, in_features = weight.shape
        parts = self._trace.found.parts.get(id(weight), (out_features,))
        if placement.by_rows(out_features, in_features, parts):
            return self._by_rows(array, weight, bias, parts)
        matrix = self._weight(weight, placement.columns(in_features)).jax()
        result = placement.constrain(_times(array, matrix), WHOLE)
        if bias is not None:
            result = result + self._weight(bias, WHOLE).jax()
        return self._remember(Traced(result, self._env), weight, [])

    def _by_rows(
        self, array: jax.Array, weight: Tensor, bias: Tensor | None, parts: Sequence[int]
    ) -> Tensor:
        results, start = [], 0
        for count in parts:
            rows = (start, start + count)
            result = _times(array, self._trace.weight(weight, ROWS, *rows))
            if bias is not None:
                result = result + self._trace.weight(bias, WHOLE, *rows)
            results.append(result)
            start += count
        whole = Traced(jnp.concatenate(results, -1), self._env)
        return self._remember(whole, weight, [Traced(one, self._env) for one in results])

    def _remember(self, result: Tensor, weight: Tensor, parts: list[Tensor]) -> Tensor:
        self._fused[id(result)] = (result, weight, parts)
        return result

    def _take_apart(self, function: Any, args: Any, kwargs: Any) -> Any:
        """What a projection gave: its parts, where they were computed apart."""
        _, weight, parts = self._fused[id(args[0])]
        found = function(*args, **kwargs)
        sizes = tuple(one.shape[-1] for one in found)
        if sum(sizes) == len(weight):  # along the last dimension
            self._trace.found.parts[id(weight)] = sizes
        return parts if [one.shape[-1] for one in parts] == list(sizes) else found

    def _lift(self, x: Tensor) -> Any:
        return self._weight(x, WHOLE) if _is_weight(x) else x

    def _weight(self, x: Tensor, spec: PartitionSpec) -> Any:
        return Traced(self._trace.weight(x, spec), self._env)


_SPLITS = (torch.split, torch.chunk, torch.Tensor.split, torch.Tensor.chunk)


def _is_weight(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and not isinstance(x, Traced | torchax.view.View)


def _times(x: jax.Array, weight_OI: jax.Array) -> jax.Array:
    return jax.lax.dot_general(
        x, weight_OI, (((x.ndim - 1,), (1,)), ((), ())), preferred_element_type=x.dtype
    )
