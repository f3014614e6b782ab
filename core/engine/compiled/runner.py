"""One compiled program a shape."""

import logging
import time
from collections.abc import Callable, Hashable
from types import FunctionType
from typing import Any, TypeAlias

import torch
from torch import Tensor

from engine.compiled.programs import ProgramCache
from engine.platform import (
    Forward,
    GraphRunner,
    Logits,
    MakeInputs,
    Shape,
    ShapeBuckets,
    StepInputs,
    StepMetadata,
)

#: A name that `torch.compile` knows, or what makes a callable of a graph and example inputs.
DynamoBackend: TypeAlias = (
    "str | Callable[[torch.fx.GraphModule, list[Tensor]], Callable[..., Any]]"
)

log = logging.getLogger(__name__)


class CompiledRunner(GraphRunner):
    """Makes a program of each shape that the buckets name, before the first request.

    A program is made by `torch.compile` with `fullgraph` and without dynamic shapes. Whatever could
    change between two steps is in its tensors, so its guards are left out: the shape of a step says
    which program to run. `num_compiled` counts the graphs that the backend was given.
    """

    def __init__(
        self,
        buckets: ShapeBuckets,
        backend: DynamoBackend,
        cache: ProgramCache | None = None,
    ) -> None:
        self.buckets = buckets
        self.num_compiled = 0
        self._backend = backend
        self._cache = cache
        self._programs: dict[Hashable, Callable[..., Tensor]] = {}

    def warm_up(self, forward: Forward, make_inputs: MakeInputs) -> None:
        self._programs.clear()  # those of a smaller cache, on which steps were measured
        shapes = self.buckets.shapes()
        known = self._cache.seconds if self._cache else {}
        left_s = sum(known.get(str(shape), 0.0) for shape in shapes)
        for number, shape in enumerate(shapes, start=1):
            expected_s = known.get(str(shape), 0.0)
            began = time.perf_counter()
            self._warm_up(forward, make_inputs(shape.requests, shape.tokens, shape), shape)
            took_s = time.perf_counter() - began
            left_s = max(0.0, left_s - expected_s)
            rest = f"; about {left_s:.0f} s left" if left_s >= 1 else ""
            log.info("program %d of %d, %s: %.1f s%s", number, len(shapes), shape, took_s, rest)
        if self._cache is not None:
            self._cache.save()

    def run(self, forward: Forward, inputs: StepInputs) -> Tensor:
        step = inputs.metadata
        shape = (len(inputs.input_ids), *step.block_table.shape, step.num_decodes > 0)
        program = self._programs.get((forward, shape))
        if program is None:
            program = self._programs[forward, shape] = self._compile(_step(forward, step))
        return program(
            inputs.input_ids,
            inputs.positions,
            step.query_start,
            step.lengths,
            step.block_table,
            step.slots,
        )

    def project(self, logits: Logits, hidden: Tensor, rows: Tensor) -> Tensor:
        key = (logits, hidden.shape, rows.shape)
        program = self._programs.get(key)
        if program is None:

            def compute(hidden: Tensor, rows: Tensor) -> Tensor:
                return logits(hidden.index_select(0, rows))

            program = self._programs[key] = self._compile(compute)
        return program(hidden, rows)

    def close(self) -> None:
        self._programs.clear()

    def _warm_up(self, forward: Forward, inputs: StepInputs, shape: Shape) -> None:
        if self._cache is None:
            self.run(forward, inputs)
            return
        with self._cache.making(shape):
            self.run(forward, inputs)

    def _compile(self, compute: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def count(graph: torch.fx.GraphModule, examples: list[Tensor]) -> Callable[..., Any]:
            self.num_compiled += 1
            return inner(graph, examples)

        inner = torch._dynamo.lookup_backend(self._backend)
        # torch keeps programs by code object, and only a few for each: every shape has its own.
        own = FunctionType(
            compute.__code__.replace(co_name=f"step_{len(self._programs)}"),
            compute.__globals__,
            closure=compute.__closure__,
        )
        options: dict[str, Any] = {"guard_filter_fn": torch.compiler.skip_all_guards_unsafe}
        program: Callable[..., Tensor] = torch.compile(
            own, backend=count, fullgraph=True, dynamic=False, options=options
        )
        return program


def _step(forward: Forward, like: StepMetadata) -> Callable[..., Tensor]:
    """A step as a function of tensors alone; what else belongs to its shape is in the program."""
    max_query, max_length, num_decodes = like.max_query, like.max_length, like.num_decodes

    def compute(
        input_ids: Tensor,
        positions: Tensor,
        query_start: Tensor,
        lengths: Tensor,
        block_table: Tensor,
        slots: Tensor,
    ) -> Tensor:
        metadata = StepMetadata(
            query_start, lengths, block_table, slots, max_query, max_length, num_decodes
        )
        return forward(StepInputs(input_ids, positions, metadata))

    return compute
