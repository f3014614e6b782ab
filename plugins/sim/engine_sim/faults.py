"""Steps of the device: its clock, and the faults that `--device sim:FAULT@N` asks for.

raise     the step raises an error
oom       the step runs out of the device's memory
hang      the step never comes back
garbage   the step's numbers are NaN
lost      the step is started, and the device is gone when anyone waits for it, from then on
"""

import threading
from collections.abc import Mapping

import torch
from torch import Tensor

from engine.platform import Forward, GraphRunner, Logits, MakeInputs, StepInputs
from engine_sim.chip import Chip
from engine_sim.errors import InjectedError
from engine_sim.kernel import PAD_SLOT
from engine_sim.tensor import SimTensor


class SteppedRunner(GraphRunner):
    """Another runner, on the device's clock, with faults in some of its steps.

    Args:
        faults: by step, the first one after warm-up being 1.
        may_wait: whether the host may wait for the device inside a step.
    """

    def __init__(
        self, inner: GraphRunner, chip: Chip, faults: Mapping[int, str], *, may_wait: bool
    ) -> None:
        self._inner = inner
        self._chip = chip
        self._faults = faults
        self._may_wait = may_wait
        self._step: int | None = None  # None: before the end of warm-up

    @property
    def num_compiled(self) -> int:  # type: ignore[override]
        return self._inner.num_compiled

    def warm_up(self, forward: Forward, make_inputs: MakeInputs) -> None:
        self._inner.warm_up(forward, make_inputs)
        self._step = 0

    def run(self, forward: Forward, inputs: StepInputs) -> Tensor:
        fault = None
        if self._step is not None and not _is_padding(inputs):
            self._step += 1
            fault = self._faults.get(self._step)
        self._chip.clock.launch()
        self._before(fault)
        result = self._run(forward, inputs)
        if fault == "garbage":
            return torch.full_like(result, torch.nan)
        if fault == "lost":
            self._chip.lost = f"injected in step {self._step}"
        return result

    def project(self, logits: Logits, hidden: Tensor, rows: Tensor) -> Tensor:
        return self._inner.project(logits, hidden, rows)

    def close(self) -> None:
        self._inner.close()

    def _before(self, fault: str | None) -> None:
        match fault:
            case "raise":
                raise InjectedError(f"{self._chip.name}: injected in step {self._step}")
            case "oom":
                self._chip.books.check(self._chip.books.limit + 1)
            case "hang":
                threading.Event().wait()

    def _run(self, forward: Forward, inputs: StepInputs) -> Tensor:
        if self._may_wait:
            return self._inner.run(forward, inputs)
        with self._chip.no_waiting():
            return self._inner.run(forward, inputs)


def _is_padding(inputs: StepInputs) -> bool:
    """Whether the core only makes sure of programs. The simulation may look; nobody waits."""
    slots_T = inputs.metadata.slots
    assert isinstance(slots_T, SimTensor)
    return bool((slots_T.data_on_host == PAD_SLOT).all())
