"""Runs a whole forward pass as one native call.

The first forward pass is recorded: each native kernel is noted with its addresses instead of being
run. From then on a step copies its inputs to where the tape expects them, fills the attention plans
anew, and runs the tape: no Python between the kernels, one parallel region, and the same threads
from the first kernel to the last. The number of tokens is symbolic, so one tape serves every step.
Where every row is a request's newest token, the logits are made by the same call: threads that wait
for the next one need not be woken.

A tape knows native kernels only. If the model computes anything with torch in between, that shows
while it is recorded, and the model is run as it is written, operation by operation.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from engine_cpu_kernels import library
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from engine.platform import EagerRunner, Forward, GraphRunner, Logits, MakeInputs, StepInputs
from engine_cpu.native.attention import NativeAttention, NativePlan
from engine_cpu.native.memory import WEIGHTS, Arena, NotRecordable, record
from engine_cpu.native.pages import Mover

#: Steps with up to so many tokens use the same views of the tape's tensors.
KEPT_ROWS = 64


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
        self._logits: Tensor | None = None  # [requests, vocabulary] float32
        self._ids = torch.zeros(capacity, dtype=torch.int64)
        self._positions = torch.zeros(capacity, dtype=torch.int64)
        self._rows: dict[int, _Rows] = {}  # by their number
        self._arena = Arena()
        self._plans: list[tuple[NativeAttention, NativePlan]] = []
        self._address = _Address(library().ek_tape_new(capacity))
        inputs = StepInputs(self._ids, self._positions, like.metadata)
        with NativeAttention.noting(self._plans):
            self._hidden = self._record(self._address, lambda: forward(inputs))

    def extend(self, logits: Logits, max_requests: int) -> None:
        """Let steps that ask for it end with the logits of all rows, up to `max_requests`.

        Raises:
            NotRecordable: they are not made by native kernels alone. The tape stays as it was.
        """
        rows = min(max_requests, self.capacity)
        extended = _Address(library().ek_tape_extend(self._address.value, rows))
        self._logits = self._record(extended, lambda: logits(self._hidden[:rows]))
        self._extended = extended
        self._rows.clear()

    def run(self, inputs: StepInputs) -> Tensor:
        """Hidden states [T, hidden], valid until the next run."""
        return self._run(inputs, self._address).hidden

    def run_with_logits(self, inputs: StepInputs) -> tuple[Tensor, Tensor] | None:
        """Those and logits [T, vocabulary], valid until the next run; None: it has none of so many
        rows."""
        if self._logits is None or len(inputs.input_ids) > len(self._logits):
            return None
        rows = self._run(inputs, self._extended)
        assert rows.logits is not None
        return rows.hidden, rows.logits

    def _record(self, address: "_Address", computation: Callable[[], Tensor]) -> Tensor:
        with record(self._arena), _OnlyViews():  # type: ignore[no-untyped-call]
            library().ek_tape_begin(address.value)
            try:
                return computation()
            finally:
                library().ek_tape_end()

    def _run(self, inputs: StepInputs, address: "_Address") -> "_Rows":
        count = len(inputs.input_ids)
        rows = self._first(count)
        rows.ids.copy_(inputs.input_ids)
        rows.positions.copy_(inputs.positions)
        for backend, plan in self._plans:
            backend.replan(plan, inputs.metadata)
        library().ek_tape_run(address.value, count)
        return rows

    def _first(self, count: int) -> "_Rows":
        """Made once where steps have few tokens, for then they show in a step's time."""
        if (rows := self._rows.get(count)) is None:
            logits = self._logits
            rows = _Rows(
                self._ids[:count],
                self._positions[:count],
                self._hidden[:count],
                None if logits is None or len(logits) < count else logits[:count],
            )
            if count <= KEPT_ROWS:
                self._rows[count] = rows
        return rows


class _Rows(NamedTuple):
    """The first ones of a tape's tensors."""

    ids: Tensor
    positions: Tensor
    hidden: Tensor
    logits: Tensor | None


class _Address:
    """Of a tape in the library, which is freed with this."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __del__(self) -> None:
        library().ek_tape_free(self.value)


class TapeRunner(GraphRunner):
    """Replays a tape where the model can be recorded; `reason` says why it cannot."""

    def __init__(self, max_tokens: int, max_requests: int) -> None:
        self._max_tokens, self._max_requests = max_tokens, max_requests
        self._project: Logits | None = None
        self._logits_bytes = 0
        self._logits_apart: str | None = "nobody said how they are made"
        self._last: tuple[Tensor, Tensor] | None = None  # hidden states and logits of a step
        self._eager = EagerRunner()
        self._tape: Tape | None = None
        self._mover: Mover | None = None
        self.reason: str | None = "nothing was recorded yet"

    def will_project(self, logits: Logits, vocab_size: int) -> None:
        self._project = logits
        self._logits_bytes = min(self._max_requests, self._max_tokens) * vocab_size * 4

    def reserve(self, activations: int) -> int:
        return self._logits_bytes

    def warm_up(self, forward: Forward, make_inputs: MakeInputs) -> None:
        try:
            self._tape = Tape(forward, make_inputs(1, 1), self._max_tokens)
            self.reason = None
            self._extend(self._tape)
        except NotRecordable as error:
            self.reason = str(error)
            self._eager.warm_up(forward, make_inputs)
        self._mover = Mover(WEIGHTS)

    def run(self, forward: Forward, inputs: StepInputs) -> Tensor:
        if self._mover is None or self._mover.done:
            return self._run(forward, inputs)
        with self._mover.step():
            return self._run(forward, inputs)

    def _run(self, forward: Forward, inputs: StepInputs) -> Tensor:
        self._last = None
        if self._tape is None or len(inputs.input_ids) > self._tape.capacity:
            return self._eager.run(forward, inputs)
        if inputs.metadata.num_decodes == len(inputs.input_ids):
            self._last = self._tape.run_with_logits(inputs)
            if self._last is not None:
                return self._last[0]
        return self._tape.run(inputs)

    def project_all(self, logits: Logits, hidden: Tensor) -> Tensor:
        if self._last is not None and self._last[0] is hidden:
            return self._last[1]
        return logits(hidden)

    def report(self) -> str:
        if self._mover is None:
            return "steps: recorded when the model is loaded"
        if self.reason is not None:
            return f"steps: operation by operation: {self.reason}"
        if self._logits_apart is not None:
            return f"steps: one native call, logits another: {self._logits_apart}"
        return "steps: one native call, with the logits where each request has one row"

    def close(self) -> None:
        self._tape = self._last = None
        if self._mover:
            self._mover.close()

    def _extend(self, tape: Tape) -> None:
        if self._project is None:
            return
        try:
            tape.extend(self._project, self._max_requests)
            self._logits_apart = None
        except NotRecordable as error:
            self._logits_apart = str(error)
