"""Runs a whole forward pass as one native call.

The first forward pass is recorded: each native kernel is noted with its addresses instead of being
run. From then on a step copies its inputs to where the tape expects them, fills the attention plans
anew, and runs the tape: no Python between the kernels, one parallel region, and the same threads
from the first kernel to the last. The number of tokens is symbolic, so one tape serves every step.

A tape knows native kernels only. If the model computes anything with torch in between, that shows
while it is recorded, and the model is run as it is written, operation by operation.
"""

from contextlib import nullcontext
from typing import Any

import torch
from engine_cpu_kernels import library
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from engine.platform import EagerRunner, Forward, GraphRunner, MakeInputs, StepInputs
from engine_cpu.native.attention import NativeAttention, NativePlan
from engine_cpu.native.memory import WEIGHTS, Arena, NotRecordable, record
from engine_cpu.native.pages import Mover


class _OnlyViews(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Lets pass what looks at the same memory in another way, and computes nothing."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Otherwise torch loads its compiler, for seconds, to tell it to leave this alone."""
        return False

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), keywords: Any = None
    ) -> Any:
        result = function(*arguments, **(keywords or {}))
        seen = {one.untyped_storage().data_ptr() for one in _tensors(arguments)}
        found = {one.untyped_storage().data_ptr() for one in _tensors(result)}
        if function._schema.is_mutable or not found or not found <= seen:
            raise NotRecordable(f"the model computes {function} between native kernels")
        return result


def _tensors(values: Any) -> list[Tensor]:
    return [one for one in tree_leaves(values) if isinstance(one, Tensor)]


class Tape:
    """A recorded forward pass for up to `capacity` tokens.

    Raises:
        NotRecordable: the pass has something that is no native kernel.
    """

    def __init__(self, forward: Forward, like: StepInputs, capacity: int) -> None:
        self.capacity = capacity
        self._ids = torch.zeros(capacity, dtype=torch.int64)
        self._positions = torch.zeros(capacity, dtype=torch.int64)
        self._arena = Arena()
        self._plans: list[tuple[NativeAttention, NativePlan]] = []
        self._address = library().ek_tape_new(capacity)
        with record(self._arena), NativeAttention.noting(self._plans), _OnlyViews():  # type: ignore[no-untyped-call]
            library().ek_tape_begin(self._address)
            try:
                inputs = StepInputs(self._ids, self._positions, like.metadata)
                self._hidden = forward(inputs)
            finally:
                library().ek_tape_end()

    def run(self, inputs: StepInputs) -> Tensor:
        """Hidden states [T, hidden], valid until the next run."""
        count = len(inputs.input_ids)
        self._ids[:count] = inputs.input_ids
        self._positions[:count] = inputs.positions
        for backend, plan in self._plans:
            backend.replan(plan, inputs.metadata)
        library().ek_tape_run(self._address, count)
        return self._hidden[:count]

    def __del__(self) -> None:
        library().ek_tape_free(self._address)


class TapeRunner(GraphRunner):
    """Replays a tape where the model can be recorded; `reason` says why it cannot."""

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._eager = EagerRunner()
        self._tape: Tape | None = None
        self._mover: Mover | None = None
        self.reason: str | None = "nothing was recorded yet"

    def warm_up(self, forward: Forward, make_inputs: MakeInputs) -> None:
        try:
            self._tape = Tape(forward, make_inputs(1, 1), self._max_tokens)
            self.reason = None
        except NotRecordable as error:
            self.reason = str(error)
            self._eager.warm_up(forward, make_inputs)
        self._mover = Mover(WEIGHTS)

    def run(self, forward: Forward, inputs: StepInputs) -> Tensor:
        with self._mover.step() if self._mover else nullcontext():
            if self._tape is None or len(inputs.input_ids) > self._tape.capacity:
                return self._eager.run(forward, inputs)
            return self._tape.run(inputs)

    def close(self) -> None:
        self._tape = None
        if self._mover:
            self._mover.close()
