"""Compiled programs of whole steps, through JAX: one a shape, counted, and kept on disk."""

import logging
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import torch
from jax.sharding import NamedSharding
from torch import Tensor
from torchax.interop import torch_view

from engine.compiled import ProgramCache
from engine.platform import (
    Forward,
    GraphRunner,
    Logits,
    MakeInputs,
    ShapeBuckets,
    StepInputs,
    StepMetadata,
)
from engine_tpu.arrays import to_numpy
from engine_tpu.logits import ChipLogits
from engine_tpu.placement import WHOLE, Placement
from engine_tpu.tracing import Compute, Found, Pages, Tracer, Weight

log = logging.getLogger(__name__)


class Programs:
    """Makes programs for the chips of a placement, and remembers the weights that lie there."""

    def __init__(self, placement: Placement) -> None:
        self.placement = placement
        self.tracer = Tracer(placement)
        self.num_compiled = 0
        #: Bytes that the largest program needs on a chip beside its arguments.
        self.temporary_bytes = 0
        #: Told of the first logits of each shape: what chooses tokens is prepared for them.
        self.after_projection: Callable[[jax.Array], None] = lambda logits: None
        self._shared: dict[Hashable, Any] = {}
        self._weights: dict[Any, tuple[Weight, jax.Array]] = {}

    def make(self, function: Callable[..., Any], arguments: Sequence[Any], **jit: Any) -> Any:
        """Compiled for arguments like these. `donate`: their places that may be overwritten.

        Raises:
            OutOfMemoryError: the compiler finds that the program does not fit the chip.
        """
        donated = jit.pop("donate", ())
        jitted = jax.jit(function, donate_argnums=donated, **jit)
        with jax.set_mesh(self.placement.mesh):
            lowered = jitted.lower(*arguments)
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            raise _out_of_memory(error) from error
        self.num_compiled += 1
        if (memory := compiled.memory_analysis()) is not None:
            self.temporary_bytes = max(self.temporary_bytes, memory.temp_size_in_bytes)
        return compiled

    def lower(self, compute: Compute, found: Found, inputs: Sequence[Any], weights: Any) -> Any:
        """The program of `compute`, its caches donated and what it gives whole on every chip."""
        pages = [one.array for one in found.pages]
        result = self.placement.sharding(WHOLE)
        return self.make(
            self.tracer.function(compute, found),
            (weights, pages, *inputs),
            donate=(1,),
            out_shardings=(result, [one.sharding for one in pages]),
        )

    def shared(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What equal layers have in common, made for the first."""
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]

    def zeros(self, shape: tuple[int, ...], dtype: Any, sharding: NamedSharding) -> jax.Array:
        return jnp.zeros(shape, dtype, device=sharding)

    def place(self, weight: Weight) -> jax.Array:
        """On the chips, once for all programs."""
        if weight.key not in self._weights:
            sharding = self.placement.sharding(weight.spec)
            self._weights[weight.key] = weight, jax.device_put(to_numpy(weight.part), sharding)
        return self._weights[weight.key][1]


class Program:
    """`compute`, compiled for inputs like these. `found`: what it uses beside them."""

    def __init__(
        self, programs: Programs, compute: Compute, found: Found, inputs: Sequence[Any]
    ) -> None:
        self._weights = [programs.place(one) for one in found.weights]
        self._pages: list[Pages] = found.pages
        self.compiled = programs.lower(compute, found, inputs, self._weights)

    def __call__(self, *inputs: Any) -> jax.Array:
        pages = [one.array for one in self._pages]
        result, pages = self.compiled(self._weights, pages, *inputs)
        for one, array in zip(self._pages, pages, strict=True):
            one.array = array
        found: jax.Array = result
        return found


class JaxRunner(GraphRunner):
    """A program for each shape, made before the first request.

    Hidden states stay on the chips: what `run` returns is for `project` alone.
    """

    def __init__(self, buckets: ShapeBuckets, programs: Programs, cache: ProgramCache) -> None:
        self.buckets = buckets
        self._maker = programs
        self._cache = cache
        self._programs: dict[Hashable, Program] = {}
        self._found: dict[Forward | Logits, Found] = {}  # the same for every shape

    @property
    def num_compiled(self) -> int:  # type: ignore[override]  # the maker's, as it is now
        return self._maker.num_compiled

    def warm_up(self, forward: Forward, make_inputs: MakeInputs) -> None:
        self.close()  # programs of another cache
        shapes = self.buckets.shapes()
        for number, shape in enumerate(shapes, start=1):
            began = time.perf_counter()
            with self._cache.making(shape):
                self.run(forward, make_inputs(shape.requests, shape.tokens, shape))
            took_s = time.perf_counter() - began
            log.info("program %d of %d, %s: %.1f s", number, len(shapes), shape, took_s)
        self._cache.save()

    def run(self, forward: Forward, inputs: StepInputs) -> Tensor:
        step = inputs.metadata
        shape = (len(inputs.input_ids), *step.block_table.shape, step.num_decodes > 0)
        metadata = (step.query_start, step.lengths, step.block_table, step.slots)
        arrays = [to_numpy(x) for x in (inputs.input_ids, inputs.positions, *metadata)]
        return self._run(forward, shape, as_step(forward, step), arrays)

    def project(self, logits: Logits, hidden: Tensor, rows: Tensor) -> Tensor:
        arrays = [hidden.jax(), to_numpy(rows)]  # type: ignore[attr-defined]  # as `run` made it
        shape = (hidden.shape, rows.shape)
        known = (logits, shape) in self._programs
        array = self._run(logits, shape, as_projection(logits), arrays).jax()  # type: ignore[attr-defined]
        if not known:
            self._maker.after_projection(array)
        return ChipLogits(array, len(array))

    def close(self) -> None:
        self._programs.clear()
        self._found.clear()

    def _run(
        self,
        function: "Forward | Logits",
        shape: Hashable,
        compute: Compute,
        arrays: Sequence[Any],
    ) -> Tensor:
        """`function`, of which `compute` is the form for this shape."""
        program = self._programs.get((function, shape))
        if program is None:
            if function not in self._found:
                self._found[function] = self._maker.tracer.discover(compute, arrays)
            program = Program(self._maker, compute, self._found[function], arrays)
            self._programs[function, shape] = program
        result: Tensor = torch_view(program(*arrays))
        return result


def as_step(forward: Forward, like: StepMetadata) -> Compute:
    """A step as a function of tensors alone; what else belongs to its shape is in the program."""
    max_query, max_length, num_decodes = like.max_query, like.max_length, like.num_decodes

    def compute(
        ids: Tensor,
        positions: Tensor,
        query_start: Tensor,
        lengths: Tensor,
        block_table: Tensor,
        slots: Tensor,
    ) -> Tensor:
        metadata = StepMetadata(
            query_start, lengths, block_table, slots, max_query, max_length, num_decodes
        )
        return forward(StepInputs(ids, positions, metadata))

    return compute


def as_projection(logits: Logits) -> Compute:
    return lambda hidden, rows: logits(hidden.index_select(0, rows))


def _out_of_memory(error: Exception) -> Exception:
    text = str(error)
    exhausted = "RESOURCE_EXHAUSTED" in text or "out of memory" in text.lower()
    return torch.OutOfMemoryError(text.splitlines()[0]) if exhausted else error
