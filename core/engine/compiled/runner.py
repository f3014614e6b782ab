"""One compiled program a shape."""

import logging
import time
from collections.abc import Callable, Hashable

from torch import Tensor

from engine.compiled.maker import ProgramMaker
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

log = logging.getLogger(__name__)


class CompiledRunner(GraphRunner):
    """Makes a program of each shape that the buckets name, before the first request.

    The shape of a step says which program to run. `num_compiled` counts all that the platform's
    `maker` made, whoever asked.
    """

    def __init__(
        self,
        buckets: ShapeBuckets,
        maker: ProgramMaker,
        cache: ProgramCache | None = None,
    ) -> None:
        self.buckets = buckets
        self._maker = maker
        self._cache = cache
        self._programs: dict[Hashable, Callable[..., Tensor]] = {}

    @property
    def num_compiled(self) -> int:  # type: ignore[override]  # the maker's, as it is now
        return self._maker.num_compiled

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
            program = self._programs[forward, shape] = self._maker.make(_step(forward, step))
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

            program = self._programs[key] = self._maker.make(compute)
        return program(hidden, rows)

    def close(self) -> None:
        self._programs.clear()

    def _warm_up(self, forward: Forward, inputs: StepInputs, shape: Shape) -> None:
        if self._cache is None:
            self.run(forward, inputs)
            return
        with self._cache.making(shape):
            self.run(forward, inputs)


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
