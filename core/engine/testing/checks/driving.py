"""Drives a loop with submissions and gathers what came of them. Without torch."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import engine.loop
from engine.batch import Batch, Logprobs, StepOutput
from engine.loop import EngineLoop
from engine.params import SamplingParams
from engine.platform import Pending, Runner
from engine.request import Delta, Finish, Submission, Summary
from engine.testing.checks.oracle import Oracle

#: More steps than any case needs: a loop that does not end is a failure, not a wait.
MOST_STEPS = 20_000

#: In every error that is made on purpose, so that one can tell whether it was reported.
MARK = "injected fault"


@dataclass(slots=True)
class Answer:
    """All that came of one continuation."""

    prompt: tuple[int, ...]
    tokens: list[int] = field(default_factory=list)
    logprobs: list[Logprobs] = field(default_factory=list)
    prompt_logprobs: list[Logprobs] = field(default_factory=list)
    finishes: list[Finish] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    summary: Summary | None = None


def ask(
    name: str,
    prompt: Sequence[int],
    max_tokens: int,
    *,
    n: int = 1,
    prompt_logprobs: int | None = None,
    priority: int = 0,
    salt: str = "",
) -> Submission:
    """A greedy request that reports its logprobs."""
    params = SamplingParams(
        n=n,
        temperature=0.0,
        max_tokens=max_tokens,
        ignore_eos=True,
        logprobs=5,
        prompt_logprobs=prompt_logprobs,
    )
    return Submission(name, tuple(prompt), params, priority, salt)


class Driver:
    """`answers` by (id, index)."""

    def __init__(self, loop: EngineLoop) -> None:
        self.loop = loop
        self.answers: dict[tuple[str, int], Answer] = {}
        self.num_steps = 0

    def submit(self, submissions: Iterable[Submission]) -> None:
        for one in submissions:
            self.loop.submit(one)
            for index in range(one.params.n):
                self.answers[one.id, index] = Answer(one.prompt)

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            self.take(self.loop.step())
            self.num_steps += 1

    def finish(self) -> Mapping[tuple[str, int], Answer]:
        """Step until nothing is left."""
        while not self.loop.idle:
            assert self.num_steps < MOST_STEPS, f"the loop is not idle after {MOST_STEPS} steps"
            self.step()
        return self.answers

    def take(self, deltas: Iterable[Delta]) -> None:
        for delta in deltas:
            answer = self.answers[delta.id, delta.index]
            assert not answer.finishes, f"{delta.id} got {delta} after its end"
            answer.tokens += delta.tokens
            answer.logprobs += delta.logprobs
            answer.prompt_logprobs += delta.prompt_logprobs
            if delta.finish is not None:
                answer.finishes.append(delta.finish)
                answer.summary = delta.summary
            if delta.error is not None:
                answer.errors.append(delta.error)


def run(loop: EngineLoop, *submissions: Submission) -> Mapping[tuple[str, int], Answer]:
    """Submit everything, then step until nothing is left."""
    driver = Driver(loop)
    driver.submit(submissions)
    return driver.finish()


def error_of(oracle: Oracle, answers: Iterable[Answer], max_tokens: int | None = None) -> float:
    """The largest error of any answer, each of which must have ended by its length."""
    worst = 0.0
    for one in answers:
        assert not one.errors, f"a request ended with an error: {one.errors[0]}"
        assert one.finishes == [Finish.LENGTH], f"a request ended with {one.finishes}"
        assert max_tokens in (None, len(one.tokens)), f"{len(one.tokens)} tokens of {max_tokens}"
        found = oracle.error(one.prompt, one.tokens, one.logprobs, one.prompt_logprobs)
        worst = max(worst, found)
    return worst


def assert_all_returned(loop: EngineLoop) -> None:
    """No block is held and no reference is left."""
    pool = loop.scheduler.allocator.pool
    held = {b: count for b in range(pool.num_blocks) if (count := pool.count(b))}
    assert not held, f"blocks are still held when nothing runs: {held}"
    assert pool.num_free == pool.num_blocks, f"{pool.num_free} of {pool.num_blocks} blocks free"


@contextmanager
def expecting_failed_steps() -> Iterator[None]:
    """Keep the loop from logging the failures that are made on purpose."""
    log = logging.getLogger(engine.loop.__name__)
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


class FaultyRunner(Runner):
    """Another runner that raises in some steps, counted from 1; `late`: when the result is read."""

    def __init__(self, inner: Runner, fail_at: set[int], *, late: bool) -> None:
        self._inner = inner
        self._fail_at = fail_at
        self._late = late
        self._step = 0

    def load(self) -> int:
        return self._inner.load()

    def execute(self, batch: Batch) -> Pending:
        self._step += 1
        fails = self._step in self._fail_at
        if fails and not self._late:
            raise RuntimeError(f"{MARK}: the step was not started")
        pending = self._inner.execute(batch)
        if not fails:
            return pending

        def lost() -> StepOutput:
            pending.result()
            raise RuntimeError(f"{MARK}: the result was lost")

        return Pending(batch, lost)

    def reset(self) -> None:
        self._inner.reset()

    def report(self) -> str:
        return self._inner.report()

    def close(self) -> None:
        self._inner.close()
