"""Static shapes: a program for each, made in warm-up.

What a compiler would make of a step is here the set of its operations with their shapes: recorded
once, and held against every later step of that shape.
"""

from collections.abc import Callable

from torch import Tensor

from engine.platform import Forward, GraphRunner, Logits, MakeInputs, ShapeBuckets, StepInputs
from engine_sim.chip import Chip, Program
from engine_sim.errors import ProgramError


class ProgramRunner(GraphRunner):
    """`num_compiled` counts programs, and those that a later step had to add to.

    Raises, from `run` and `project`:
        ProgramError: the step has a shape, or an operation, that warm-up did not have; where
            `buckets.missing` is "compile" it becomes a program instead.
    """

    def __init__(self, chip: Chip, buckets: ShapeBuckets) -> None:
        self.num_compiled = 0
        self._chip = chip
        self._buckets = buckets
        self._programs: dict[str, Program] = {}
        self._may_compile = True

    def warm_up(self, forward: Forward, make_inputs: MakeInputs) -> None:
        self._programs.clear()  # those of a smaller cache, on which steps were measured
        self._may_compile = True
        for shape in self._buckets.shapes():
            self.run(forward, make_inputs(shape.requests, shape.tokens, shape))
        self._may_compile = self._buckets.missing == "compile"

    def run(self, forward: Forward, inputs: StepInputs) -> Tensor:
        requests, blocks = inputs.metadata.block_table.shape
        shape = f"{len(inputs.input_ids)} tokens of {requests} requests over {blocks} blocks"
        return self._play(shape, lambda: forward(inputs), make=self._may_compile)

    def project(self, logits: Logits, hidden: Tensor, rows: Tensor) -> Tensor:
        """The core asks for each of its shapes before the first request, but after `warm_up`."""

        def compute() -> Tensor:
            return logits(hidden.index_select(0, rows))

        shape = f"logits of {len(rows)} of {len(hidden)} tokens"
        return self._play(shape, compute, make=self._may_compile or shape not in self._programs)

    def close(self) -> None:
        self._programs.clear()

    def _play(self, shape: str, compute: Callable[[], Tensor], *, make: bool) -> Tensor:
        if make:
            return self._record(self._programs.setdefault(shape, Program()), compute)
        program = self._programs.get(shape)
        if program is None:
            made = "; ".join(self._programs)
            raise ProgramError(f"{self._chip.name} has no program for {shape}; it has: {made}")
        with self._chip.replay(program):
            return compute()

    def _record(self, program: Program, compute: Callable[[], Tensor]) -> Tensor:
        """Compute, and make all of it the program's."""
        before = len(program)
        with self._chip.record(program):
            result = compute()
        self.num_compiled += len(program) > before
        return result
