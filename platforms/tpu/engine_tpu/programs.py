"""Programs of torch's functions, through JAX.

jax traces a function once. Weights and caches that it meets are constants of what was traced, and
become arguments of the program:

    trace      compute(inputs)                      ──→ constants: weights, caches
    program    (weights, caches, inputs)            ──→ (result, caches)     caches are donated
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import torch
from jax.extend.core import ClosedJaxpr
from jax.sharding import NamedSharding, PartitionSpec
from torch import Tensor

from engine.compiled import ProgramMaker
from engine_tpu.arrays import Array, ChipTensor, to_jax
from engine_tpu.placement import WHOLE, Placement
from engine_tpu.tracing import in_jax


class Pages:
    """One layer's cache: an array that is replaced, never changed."""

    def __init__(self, array: jax.Array) -> None:
        self.array = array


class Programs(ProgramMaker):
    """Makes programs for the chips of a placement, and remembers the weights that lie there."""

    def __init__(self, placement: Placement) -> None:
        super().__init__("jax")
        self.placement = placement
        #: Told of the shape of logits: what chooses tokens is prepared for them.
        self.after_projection: Callable[[tuple[int, ...]], None] = lambda shape: None
        self._shared: dict[Hashable, Any] = {}
        self._weights: dict[Hashable, tuple[Tensor, jax.Array]] = {}
        self._replaced: dict[Pages, jax.Array] = {}  # while a function is traced: before it was

    def make(self, compute: Callable[..., Tensor]) -> "Program":
        """Compiled at its first call, which so decides the shapes of all others."""
        return Program(self, compute)

    def compile(self, function: Callable[..., Any], arguments: Sequence[Any], **jit: Any) -> Any:
        """Of arrays, for arguments like these.

        Raises:
            OutOfMemoryError: the compiler finds that the program does not fit the chip.
        """
        with jax.set_mesh(self.placement.mesh):
            lowered = jax.jit(function, **jit).lower(*arguments)
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            raise _out_of_memory(error) from error
        self.num_compiled += 1
        return compiled

    def shared(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What equal layers have in common, made for the first."""
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]

    def zeros(self, shape: tuple[int, ...], dtype: Any, sharding: NamedSharding) -> jax.Array:
        return jnp.zeros(shape, dtype, device=sharding)

    def place(
        self, weight: Tensor, spec: PartitionSpec, start: int = 0, stop: int | None = None
    ) -> jax.Array:
        """Rows start:stop of a weight on the chips, once for all programs."""
        key = (id(weight), spec, start, stop)
        if key not in self._weights:
            part = weight[start:stop] if weight.dim() else weight
            with jax.ensure_compile_time_eval():
                placed = jax.device_put(to_jax(part), self.placement.sharding(spec))
            self._weights[key] = weight, placed
        return self._weights[key][1]

    def replace(self, pages: Pages, array: jax.Array) -> None:
        """While a function is traced: `pages` are `array` from here on."""
        self._replaced.setdefault(pages, pages.array)
        pages.array = array

    def trace(
        self, compute: Callable[..., Tensor], inputs: Sequence[Any]
    ) -> tuple[ClosedJaxpr, dict[Pages, jax.Array]]:
        """(inputs) -> (result, *caches), and the caches as they are, which are among its constants
        as weights are."""

        def step(*arrays: jax.Array) -> list[jax.Array]:
            result = in_jax(compute, arrays, self.placement, self.place)
            return [result, *(pages.array for pages in self._replaced)]

        try:
            with jax.set_mesh(self.placement.mesh):
                traced = jax.make_jaxpr(step)(*inputs)
        finally:
            replaced, self._replaced = self._replaced, {}
            for pages, array in replaced.items():
                pages.array = array
        return traced, replaced


class Program:
    """`compute`, which runs on the chips."""

    compiled: Any = None
    weights: Sequence[jax.Array] = ()
    pages: Sequence[Pages] = ()

    def __init__(self, programs: Programs, compute: Callable[..., Tensor]) -> None:
        self._programs = programs
        self._compute = compute

    def __call__(self, *inputs: Tensor) -> Tensor:
        arrays = [to_jax(x) for x in inputs]
        if self.compiled is None:
            self.compile(arrays)
        before = [pages.array for pages in self.pages]
        result, *after = self.compiled(self.weights, before, *arrays)
        for pages, array in zip(self.pages, after, strict=True):
            pages.array = array
        return ChipTensor(result, len(result))

    def compile(self, inputs: Sequence[Array | jax.ShapeDtypeStruct]) -> None:
        """For inputs like these."""
        traced, caches = self._programs.trace(self._compute, inputs)
        of_cache = {id(array) for array in caches.values()}
        self.pages = list(caches)
        self.weights = [one for one in traced.consts if id(one) not in of_cache]

        def program(weights: Sequence[Any], before: Sequence[Any], *inputs: Any) -> Any:
            bound = {id(one): new for one, new in zip(self.weights, weights, strict=True)}
            bound |= {id(old): new for old, new in zip(caches.values(), before, strict=True)}
            constants = [bound[id(one)] for one in traced.consts]
            return jax.core.eval_jaxpr(traced.jaxpr, constants, *inputs)

        arrays = list(caches.values())
        whole = self._programs.placement.sharding(WHOLE)
        self.compiled = self._programs.compile(
            program,
            (self.weights, arrays, *inputs),
            donate_argnums=1,
            out_shardings=[whole, *(one.sharding for one in arrays)],
        )
        if not caches:  # a projection
            self._programs.after_projection(traced.out_avals[0].shape)


def _out_of_memory(error: Exception) -> Exception:
    text = str(error)
    exhausted = "RESOURCE_EXHAUSTED" in text or "out of memory" in text.lower()
    return torch.OutOfMemoryError(text.splitlines()[0]) if exhausted else error
