"""The engine's loop, which may take many equal decode steps at once.

Between an arrival and an ending nothing happens but that each running request computes one token a
step. The scheduler would decide the same thing again and again, at the price of a decision each. So
such steps are predicted one by one, which is cheap, and their traces left in the requests and in
the KV cache all together, in the order in which the scheduler would have left them: what follows is
the same to the last bit (tests/unit/simulate/test_leap.py compares both ways).

    step     |  1  |  2  |  3  |  4  |  5  |
    request  a  .  .  .  a takes a block      .      . a's last token
    request  b  .  .  b's block is full, so it is remembered ..
    leap     |<-------------------->|  ends before a's last token
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.loop import EngineLoop
from engine.request import Delta, Request
from engine.simulate.clock import TOKEN, Step, VirtualClock, VirtualRunner

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: In one step: blocks are taken while it is made, and remembered then or when its tokens arrive.
_TAKE, _REMEMBER = 0, 1


@dataclass(slots=True)
class Leap:
    """`times`: when the tokens of each step came, one token for each of `requests`."""

    times: "NDArray[np.float64]"
    requests: int


class LeapingLoop(EngineLoop):
    """Takes the arguments of `EngineLoop`, whose `runner` must be a `VirtualRunner`, and
    `clock` a `VirtualClock`."""

    runner: VirtualRunner
    _clock: VirtualClock

    def __init__(self, *arguments: Any, clock: VirtualClock, **settings: Any) -> None:
        super().__init__(*arguments, clock=clock, **settings)
        self._stalled = False  # those who wait were refused, and nothing has changed since

    def step(self) -> list[Delta]:
        waited = bool(self.scheduler.waiting) and all(map(_decodes, self.scheduler.running))
        running = len(self.scheduler.running)
        preempted = self.scheduler.num_preemptions
        deltas = super().step()
        self._stalled = (
            waited
            and len(self.scheduler.running) == running
            and self.scheduler.num_preemptions == preempted
            and not self.scheduler.allocator.caching  # to ask the cache changes what is evicted
            and all(delta.finish is None for delta in deltas)
        )
        return deltas

    def leap(self, until: float) -> Leap | None:
        """Decode steps up to the first whose tokens come at `until` or later; None when the next
        step may be another than a decode step of all that run."""
        requests = self.scheduler.running
        if not self._decodes_only(requests):
            return None
        most = min(one.max_tokens - len(one.output) for one in requests) - 1
        most = self._within_blocks(requests, most)
        if most < 1:
            return None
        times = self._run(requests, most, until)
        self._leave_traces(requests, len(times))
        return Leap(times, len(requests))

    def _decodes_only(self, requests: list[Request]) -> bool:
        """Whether every step is one token for each of these, until one of them ends."""
        scheduler = self.scheduler
        if not requests:
            return False
        if scheduler.waiting and not self._stalled and len(requests) < scheduler.max_requests:
            return False
        mixed = scheduler.capabilities.mixed_batches
        rows = scheduler.max_rows if mixed else scheduler.max_requests
        if len(requests) > min(rows, scheduler.max_batch_tokens):
            return False
        if (in_flight := self._in_flight) is not None and len(in_flight.batch.slices) != len(
            requests
        ):
            return False
        pending = int(self.overlap)
        return (in_flight is not None) == self.overlap and all(
            one.pending == pending and _decodes(one) for one in requests
        )

    def _within_blocks(self, requests: list[Request], most: int) -> int:
        """As many steps, at most, as there are blocks for."""
        allocator = self.scheduler.allocator
        while most > 0:
            needed = sum(
                max(0, allocator.num_blocks(one.computed + most) - len(one.blocks))
                for one in requests
            )
            if needed <= allocator.pool.num_free:
                return most
            most //= 2
        return 0

    def _run(self, requests: list[Request], most: int, until: float) -> "NDArray[np.float64]":
        """Let the clock and the device run; when the tokens of each step came."""
        runner, clock, flying = self.runner, self._clock, self._in_flight
        contexts = [one.computed + 1 for one in requests]
        [first] = runner.model.decode_seconds(contexts, 1)
        # No later step is shorter than the first one, so `until` is not many steps away.
        most = int(min(most, (until - clock.now) / first + 2))
        seconds = runner.model.decode_seconds(contexts, most)
        begun = max(clock.now, runner.free_at)
        done = np.add.accumulate(np.concatenate(([begun], seconds)))  # as one adds by hand
        if isinstance(flying, Step):  # the tokens of a step come while the next one runs
            times = np.concatenate(([max(clock.now, flying.end)], done[1:-1]))
        else:
            times = done[1:]
        steps = min(int(np.searchsorted(times, until)) + 1, most)
        runner.skip(seconds[:steps], float(done[steps]))
        clock.now = float(times[steps - 1])
        if flying is not None:
            self._in_flight = Step(flying.batch, clock, runner.free_at)
        return times[:steps]

    def _leave_traces(self, requests: list[Request], steps: int) -> None:
        """Do to requests and blocks what so many steps would have done."""
        size = self.scheduler.allocator.block_size
        starts = [one.computed for one in requests]
        for request in requests:
            request.output.extend([TOKEN] * steps)
        if self.scheduler.allocator.caching:
            self._take_and_remember(requests, starts, steps)
        for request, start in zip(requests, starts, strict=True):
            if start + steps > len(request.blocks) * size:
                self._reserve(request, start + steps)
            request.computed = start + steps

    def _take_and_remember(self, requests: list[Request], starts: list[int], steps: int) -> None:
        """With a prefix cache the order counts: it says what is evicted first."""
        size = self.scheduler.allocator.block_size
        events: list[tuple[int, int, int, int]] = []  # step, when in it, which request, what
        for order, request in enumerate(requests):
            first = len(request.blocks) * size - request.computed
            events += [(step, 0, order, _TAKE) for step in range(first, steps, size)]
            full = size - 1 - request.computed % size
            when = int(self.overlap)  # its token is known a step later
            events += [(step, when, order, _REMEMBER) for step in range(full, steps, size)]
        for step, _, order, kind in sorted(events):
            request = requests[order]
            request.computed = starts[order] + step
            if kind == _TAKE:
                self._reserve(request, request.computed + 1)
            else:
                request.computed += 1
                self.scheduler.allocator.remember(request)

    def _reserve(self, request: Request, stop: int) -> None:
        reserved = self.scheduler.allocator.reserve(request, stop)
        assert reserved is not None, "blocks were counted before"
        assert not reserved.copies


def _decodes(request: Request) -> bool:
    return len(request) - request.computed == 1
