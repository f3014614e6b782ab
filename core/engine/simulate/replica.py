"""One engine under a virtual clock: the real loop, scheduler and KV cache, and a predicted device.

arrivals   |  a    b          c
clock      0--[ step ][ step ]....[ step ][ step ]--->   the device is idle where nothing runs
"""

import math
from array import array
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from engine.config import EngineConfig
from engine.errors import RequestError
from engine.params import SamplingParams
from engine.platform.base import Capabilities
from engine.platform.shapes import ShapeBuckets
from engine.request import Delta, Submission
from engine.simulate.clock import TOKEN, VirtualClock, VirtualRunner
from engine.simulate.cost import TimeModel
from engine.simulate.leap import LeapingLoop
from engine.simulate.trace import TRACE_BLOCK, Trace

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Times between tokens are counted in bins that differ by this factor.
GAP_FACTOR = 1.01
#: Where bins begin and end, from a microsecond to three hours. The first and last hold the rest.
_BOUNDS = 1e-6 * GAP_FACTOR ** np.arange(2320)
_EDGES: list[float] = _BOUNDS.tolist()
NEVER = math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What all replicas are. Plain data that pickles."""

    config: EngineConfig
    capabilities: Capabilities
    buckets: ShapeBuckets | None
    num_blocks: int
    block_size: int
    max_model_len: int
    model: TimeModel
    period_s: float  # over which the use of the KV cache is averaged
    leaping: bool = True


@dataclass(slots=True)
class Outcome:
    """What became of one replica's requests; seconds on the trace's clock, NaN for refused ones."""

    first_token: "array[float]"
    finished: "array[float]"
    refused: Counter[str] = field(default_factory=Counter)  # by reason
    gaps: Counter[int] = field(default_factory=Counter)  # between tokens; see `gap_bin`
    kv_use: dict[int, float] = field(default_factory=dict)  # block seconds, by period
    tokens: int = 0  # of output
    preemptions: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    steps: int = 0
    busy_s: float = 0.0


def simulate_replica(setup: Setup, trace: Trace) -> Outcome:
    """Let a new replica serve the trace to the end."""
    return _Replica(setup, trace).run()


def gap_bin(gap_s: float) -> int:
    return bisect_right(_EDGES, gap_s)


def gap_of(number: int) -> float:
    """Seconds in the middle of a bin."""
    return _EDGES[min(number, len(_EDGES) - 1)] * float(GAP_FACTOR**-0.5)


class _Replica:
    def __init__(self, setup: Setup, trace: Trace) -> None:
        self.trace = trace
        self.setup = setup
        self.clock = VirtualClock()
        self.runner = VirtualRunner(self.clock, setup.model)
        self.loop = LeapingLoop(
            setup.config,
            self.runner,
            num_blocks=setup.num_blocks,
            block_size=setup.block_size,
            max_model_len=setup.max_model_len,
            capabilities=setup.capabilities,
            buckets=setup.buckets,
            clock=self.clock,
        )
        self.outcome = Outcome(array("d", [NEVER]) * len(trace), array("d", [NEVER]) * len(trace))
        self.last: dict[str, float] = {}  # when an unfinished request got its last token
        self.next = 0  # of the trace, to arrive

    def run(self) -> Outcome:
        clock, loop, arrivals = self.clock, self.loop, self.trace.arrivals
        while True:
            while self.next < len(arrivals) and arrivals[self.next] <= clock.now:
                self._submit(self.next)
                self.next += 1
            upcoming = arrivals[self.next] if self.next < len(arrivals) else math.inf
            if loop.idle:
                if upcoming == math.inf:
                    return self._finish()
                clock.now = upcoming
            else:
                self._advance(upcoming)

    def _submit(self, number: int) -> None:
        trace = self.trace
        inputs, outputs = trace.inputs[number], trace.outputs[number]
        if inputs + outputs > self.setup.max_model_len:
            self.outcome.refused["longer than the context"] += 1
            return
        prompt = _shared_prompt(trace.blocks[number], inputs) if trace.blocks else _prompt(inputs)
        try:
            self.loop.submit(Submission(str(number), prompt, _params(outputs)))
        except RequestError:
            self.outcome.refused["larger than the KV cache"] += 1

    def _advance(self, upcoming: float) -> None:
        """One step, or many at once."""
        began, steps = self.clock.now, self.runner.num_steps
        if self.setup.leaping and self._all_just_got_a_token():
            leap = self.loop.leap(upcoming)
            if leap is not None:
                self._note_leap(leap.times, began)
                self._note_use(began)
                return
        deltas = self.loop.step()
        self._note(deltas)
        self._note_use(began)
        stuck = self.clock.now == began and self.runner.num_steps == steps and not deltas
        assert not stuck or self.loop.idle, "nothing can be computed, and nothing will change"

    def _all_just_got_a_token(self) -> bool:
        now, last = self.clock.now, self.last
        return all(last.get(one.id) == now for one in self.loop.scheduler.running)

    def _note_leap(self, times: "NDArray[np.float64]", began: float) -> None:
        running, now = self.loop.scheduler.running, self.clock.now
        bins = np.searchsorted(_BOUNDS, np.diff(times, prepend=began), side="right")
        for number, steps in zip(*np.unique(bins, return_counts=True), strict=True):
            self.outcome.gaps[int(number)] += int(steps) * len(running)
        self.outcome.tokens += len(times) * len(running)
        for one in running:
            self.last[one.id] = now

    def _note(self, deltas: list[Delta]) -> None:
        now, last, outcome = self.clock.now, self.last, self.outcome
        for delta in deltas:
            assert delta.error is None, f"the engine failed in a simulation: {delta.error}"
            if delta.tokens:
                before = last.get(delta.id)
                if before is None:
                    outcome.first_token[int(delta.id)] = now
                else:
                    outcome.gaps[gap_bin(now - before)] += 1
                outcome.tokens += 1
                last[delta.id] = now
            if delta.finish:
                outcome.finished[int(delta.id)] = now
                del last[delta.id]

    def _note_use(self, began: float) -> None:
        """Of the KV cache, since then. A step is short beside a period."""
        pool = self.loop.scheduler.allocator.pool
        held = (pool.num_blocks - pool.num_free) * (self.clock.now - began)
        if held:
            period = int(self.clock.now / self.setup.period_s)
            self.outcome.kv_use[period] = self.outcome.kv_use.get(period, 0.0) + held

    def _finish(self) -> Outcome:
        outcome, stats = self.outcome, self.loop.stats
        assert stats.num_blocks_held == 0, "a block was lost"
        outcome.preemptions = stats.num_preemptions
        outcome.prefix_queries, outcome.prefix_hits = stats.prefix_queries, stats.prefix_hits
        outcome.steps, outcome.busy_s = self.runner.num_steps, self.runner.busy_s
        return outcome


@cache
def _params(outputs: int) -> SamplingParams:
    return SamplingParams(max_tokens=outputs, ignore_eos=True)


def _prompt(inputs: int) -> tuple[int, ...]:
    """Nobody reads it: prefixes are not looked for where the trace does not know them."""
    return (TOKEN,) * inputs


def _shared_prompt(blocks: tuple[int, ...], inputs: int) -> tuple[int, ...]:
    """Other tokens for each id; none of them is the token that is sampled."""
    tokens: list[int] = []
    for one in blocks:
        tokens += range(1 + one * TRACE_BLOCK, 1 + (one + 1) * TRACE_BLOCK)
    return tuple(tokens[:inputs])
