"""Time that passes when somebody says so, and a runner whose steps take as long as predicted."""

from typing import TYPE_CHECKING

import numpy as np

from engine.batch import Batch, SliceOutput, StepOutput
from engine.platform.runner import Pending, Runner
from engine.simulate.cost import TimeModel

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: What every request gets. Nothing ends a request but its number of tokens.
TOKEN = 0
_SAMPLED, _NOTHING = SliceOutput((TOKEN,)), SliceOutput()


class VirtualClock:
    """Seconds since the trace began. Called, it tells the time."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Step(Pending):
    """One in flight on a device that will be done at `end`. To wait for it moves the clock."""

    def __init__(self, batch: Batch, clock: VirtualClock, end: float) -> None:
        super().__init__(batch, self._arrive)
        self.end = end
        self._clock = clock

    def _arrive(self) -> StepOutput:
        self._clock.now = max(self._clock.now, self.end)
        slices = self.batch.slices
        return StepOutput(tuple(_SAMPLED if part.samples else _NOTHING for part in slices))


class VirtualRunner(Runner):
    """Computes nothing. The device takes its steps one after the other."""

    def __init__(self, clock: VirtualClock, model: TimeModel) -> None:
        self.clock = clock
        self.model = model
        self.free_at = 0.0  # when the device is done with all it was given
        self.busy_s = 0.0
        self.num_steps = 0

    def load(self) -> int:
        raise AssertionError("nothing is loaded: whoever simulates knows the number of blocks")

    def execute(self, batch: Batch) -> Step:
        seconds = self.model.seconds(self.model.work(batch))
        return Step(batch, self.clock, self.start_at(self.clock.now, seconds))

    def start_at(self, now: float, seconds: float) -> float:
        """Give the device a step; returns when it will be done."""
        self.free_at = max(now, self.free_at) + seconds
        self.busy_s += seconds
        self.num_steps += 1
        return self.free_at

    def skip(self, seconds: "NDArray[np.float64]", free_at: float) -> None:
        """As if these steps had been given to the device, which is done with them then."""
        self.free_at = free_at
        self.busy_s = float(np.add.accumulate(np.concatenate(([self.busy_s], seconds)))[-1])
        self.num_steps += len(seconds)

    def reset(self) -> None:
        """It remembers nothing."""
