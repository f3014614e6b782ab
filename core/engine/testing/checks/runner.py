"""The tiny model through the real loop: the same right answers, however they are computed."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from engine.assemble import Engine
from engine.platform import Capabilities
from engine.request import Finish, Submission
from engine.testing.checks.case import (
    Case,
    all_of,
    needs_chunked_prefill,
    needs_dtype,
    needs_overlap,
    needs_prefix_reuse,
)
from engine.testing.checks.driving import (
    Driver,
    FaultyRunner,
    ask,
    assert_all_returned,
    error_of,
    expecting_failed_steps,
    run,
)
from engine.testing.checks.subject import Subject

#: In natural-log probability, over the whole model: see `Oracle.error`.
TOLERANCES = {"float32": 1e-4, "bfloat16": 0.3, "float16": 0.04}

OUTPUT = 8  # tokens


class Bench:
    """The subject with a dtype, and prompts of random tokens that are the same in every run."""

    def __init__(self, subject: Subject, dtype: str) -> None:
        self.subject = subject
        self.dtype = dtype
        self.block_size = subject.capabilities.block_sizes[0]
        self._random = random.Random(7)

    def prompt(self, length: int) -> tuple[int, ...]:
        most = min(self.subject.oracle.vocab_size, 96)
        return tuple(self._random.randrange(most) for _ in range(length))

    @contextmanager
    def engine(self, **settings: Any) -> Iterator[Engine]:
        """In turn, in small steps, with room for all, unless `settings` say otherwise."""
        usual = {"max_requests": 16, "max_batch_tokens": 256, "num_blocks": 64, "overlap": False}
        with self.subject.engine(dtype=self.dtype, **{**usual, **settings}) as engine:
            yield engine

    def error(self, *submissions: Submission, **settings: Any) -> float:
        with self.engine(**settings) as engine:
            found = run(engine.loop, *submissions)
            assert_all_returned(engine.loop)
        return error_of(self.subject.oracle, found.values(), OUTPUT)


def alone(bench: Bench) -> float:
    """One request at a time, of lengths around a block's; logprobs of prompt and output."""
    size = bench.block_size
    with bench.engine() as engine:
        worst = 0.0
        for length in (1, size - 1, size, size + 1, 2 * size + 3):
            asked = ask("a", bench.prompt(max(1, length)), OUTPUT, prompt_logprobs=3)
            answers = run(engine.loop, asked).values()
            worst = max(worst, error_of(bench.subject.oracle, answers, OUTPUT))
            [answer] = answers
            assert len(answer.logprobs) == OUTPUT, "one logprob a token was asked for"
            expected = len(asked.prompt) - 1
            assert len(answer.prompt_logprobs) == expected, (
                f"{len(answer.prompt_logprobs)} prompt logprobs, expected {expected}"
            )
    return worst


def batched(bench: Bench, **settings: Any) -> float:
    """Nine requests of different lengths at once."""
    lengths = [1 + i * (bench.block_size + 3) // 3 for i in range(9)]
    return bench.error(
        *(ask(str(i), bench.prompt(n), OUTPUT) for i, n in enumerate(lengths)), **settings
    )


def overlapped(bench: Bench) -> float:
    """The next step is started before the last one's tokens were read."""
    return batched(bench, overlap=True)


def chunked(bench: Bench) -> float:
    """Steps that hold only a part of a prompt, and end inside blocks."""
    size = bench.block_size
    prompts = [bench.prompt(n) for n in (2 * size + 5, size, 3)]
    asked = [ask(str(i), prompt, OUTPUT) for i, prompt in enumerate(prompts)]
    return bench.error(*asked, max_batch_tokens=size // 2 + 3)


def preempted(bench: Bench, **settings: Any) -> float:
    """Too few blocks for all: someone is sent back, and computed again."""
    length = 2 * bench.block_size - OUTPUT // 2 if bench.block_size > OUTPUT else bench.block_size
    prompts = [bench.prompt(length) for _ in range(3)]
    needed = -(-(length + OUTPUT) // bench.block_size)
    few = {"num_blocks": 3 * needed - 2, "max_model_len": length + OUTPUT}
    with bench.engine(**few, **settings) as engine:
        asked = [ask(str(i), prompt, OUTPUT) for i, prompt in enumerate(prompts)]
        found = run(engine.loop, *asked)
        assert engine.loop.stats.num_preemptions > 0, "nothing was preempted: the case is wrong"
        assert_all_returned(engine.loop)
    return error_of(bench.subject.oracle, found.values(), OUTPUT)


def preempted_and_overlapped(bench: Bench) -> float:
    """Both at once."""
    return preempted(bench, overlap=True)


def prefix_hit(bench: Bench) -> float:
    """Later requests begin with blocks of an earlier one."""
    size = bench.block_size
    start = bench.prompt(2 * size)
    with bench.engine() as engine:
        first = run(engine.loop, ask("first", start + bench.prompt(5), OUTPUT))
        more = [ask(str(i), start + bench.prompt(4 + i), OUTPUT) for i in range(3)]
        then = run(engine.loop, *more)
    cached = [one.summary.num_cached for one in then.values() if one.summary]
    assert cached == [2 * size] * 3, f"{cached} prompt tokens were found, expected {2 * size} each"
    return error_of(bench.subject.oracle, [*first.values(), *then.values()], OUTPUT)


def siblings(bench: Bench) -> float:
    """Four continuations of one prompt, which ends inside a block and at its border."""
    size = bench.block_size
    return max(
        bench.error(ask("a", bench.prompt(length), OUTPUT, n=4)) for length in (size + 1, 2 * size)
    )


def comes_and_goes(bench: Bench) -> float:
    """Requests arrive while others run, and one is aborted; the rest is not disturbed."""
    with bench.engine() as engine:
        driver = Driver(engine.loop)
        for i in range(6):
            driver.submit([ask(str(i), bench.prompt(5 + 3 * i), OUTPUT)])
            driver.step(2)
            if i == 3:
                driver.take(engine.loop.abort("2"))
        answers = dict(driver.finish())
        gone = answers.pop(("2", 0))
        assert gone.finishes == [Finish.ABORT], f"an aborted request ended with {gone.finishes}"
        assert_all_returned(engine.loop)
    return error_of(bench.subject.oracle, answers.values(), OUTPUT)


def goes_on_after(*, late: bool) -> Callable[[Bench], float]:
    def check(bench: Bench) -> float:
        """A step fails: its requests end with an error, and the next ones are right."""
        with bench.engine() as engine:
            engine.loop.runner = FaultyRunner(engine.loop.runner, {3}, late=late)
            asked = ask("a", bench.prompt(20), OUTPUT), ask("b", (1, 2, 3), OUTPUT)
            with expecting_failed_steps():
                lost = run(engine.loop, *asked)
            for answer in lost.values():
                assert answer.finishes == [Finish.ERROR], f"ended with {answer.finishes}"
                assert answer.errors, "a request ended with an error that says nothing"
            assert_all_returned(engine.loop)
            found = run(engine.loop, ask("c", bench.prompt(30), OUTPUT))
        return error_of(bench.subject.oracle, found.values(), OUTPUT)

    return check


_NO_SKIP: Callable[[Capabilities], str | None] = lambda capabilities: None  # noqa: E731

SCENES: tuple[tuple[str, Callable[[Bench], float], Callable[[Capabilities], str | None]], ...] = (
    ("alone", alone, _NO_SKIP),
    ("batched", batched, _NO_SKIP),
    ("overlapped", overlapped, needs_overlap),
    ("chunked", chunked, needs_chunked_prefill),
    ("preempted", preempted, _NO_SKIP),
    ("preempted-and-overlapped", preempted_and_overlapped, needs_overlap),
    ("prefix-hit", prefix_hit, needs_prefix_reuse),
    ("siblings", siblings, _NO_SKIP),
    ("comes-and-goes", comes_and_goes, _NO_SKIP),
    ("goes-on-after-a-step-that-raises", goes_on_after(late=False), _NO_SKIP),
    ("goes-on-after-a-lost-result", goes_on_after(late=True), _NO_SKIP),
)


def _in_dtype(scene: Callable[[Bench], float], dtype: str) -> Callable[[Subject], float]:
    return lambda subject: scene(Bench(subject, dtype))


CASES = tuple(
    Case(
        id=f"runner/{dtype}/{name}",
        level="runner",
        check=_in_dtype(scene, dtype),
        tolerance=tolerance,
        skip=all_of(needs_dtype(dtype), skip),
    )
    for dtype, tolerance in TOLERANCES.items()
    for name, scene, skip in SCENES
)
