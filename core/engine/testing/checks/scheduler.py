"""Random scripts through the platform's own runner: right tokens, and every block comes back."""

import random
from collections.abc import Callable, Mapping

from engine.request import Finish
from engine.testing.checks.case import Case, needs_overlap
from engine.testing.checks.driving import Answer, Driver, ask, assert_all_returned, error_of
from engine.testing.checks.oracle import Oracle
from engine.testing.checks.runner import TOLERANCES
from engine.testing.checks.subject import Subject

SEEDS = range(4)
REQUESTS = 10


def survives(seed: int, *, overlap: bool) -> Callable[[Subject], None]:
    def check(subject: Subject) -> None:
        """Arrivals, priorities, siblings, shared prefixes, salts and aborts, with too few blocks.

        Each continuation ends once, with right tokens; then no block is held.
        """
        script = random.Random(seed)
        size = subject.capabilities.block_sizes[0]
        room = 3 * size
        settings = {
            "num_blocks": script.randint(4, 9),
            "max_model_len": room,
            "max_batch_tokens": script.randint(size // 2 + 2, 3 * size),
            "max_requests": script.randint(2, 8),
            "overlap": overlap,
        }
        with subject.engine(**settings) as engine:
            driver = Driver(engine.loop)
            aborted = _play(script, driver, size, room)
            answers = driver.finish()
            assert_all_returned(engine.loop)
            tolerance = TOLERANCES[engine.facts.dtype]
        error = _judge(subject.oracle, answers, aborted)
        assert error <= tolerance, f"error {error:.3g} is over the tolerance {tolerance:.3g}"

    return check


def _play(script: random.Random, driver: Driver, size: int, room: int) -> set[str]:
    """Submit, step and abort at random; the ids of what was aborted."""
    common = tuple(script.randrange(90) for _ in range(2 * size))
    aborted: set[str] = set()
    for number in range(REQUESTS):
        shared = common[: script.choice((0, 0, size, 2 * size))]
        own = tuple(script.randrange(90) for _ in range(script.randint(1, size // 2 + 1)))
        prompt = (shared + own)[: room - 2]
        driver.submit(
            [
                ask(
                    str(number),
                    prompt,
                    script.randint(1, min(12, room - len(prompt))),
                    n=script.choice((1, 1, 2, 3)),
                    priority=script.choice((0, 0, -1, 1)),
                    salt=script.choice(("", "", "other")),
                )
            ]
        )
        driver.step(script.randint(0, 3))
        if script.random() < 0.2:
            name = str(script.randint(0, number))
            ended = driver.loop.abort(name)
            driver.take(ended)
            aborted |= {delta.id for delta in ended}
    return aborted


def _judge(oracle: Oracle, answers: Mapping[tuple[str, int], Answer], aborted: set[str]) -> float:
    """The largest error of what was not aborted; the rest must have ended too."""
    for (name, index), one in answers.items():
        assert len(one.finishes) == 1, f"{name}.{index} ended {len(one.finishes)} times"
        known = (Finish.LENGTH, Finish.ABORT) if name in aborted else (Finish.LENGTH,)
        assert one.finishes[0] in known, f"{name}.{index}: {one.finishes[0]} {one.errors}"
    return error_of(oracle, (one for one in answers.values() if one.finishes == [Finish.LENGTH]))


def _case(seed: int, *, overlap: bool) -> Case:
    how = "overlapped" if overlap else "in-turn"
    return Case(
        id=f"scheduler/random-{seed}-{how}",
        level="scheduler",
        check=survives(seed, overlap=overlap),
        skip=needs_overlap if overlap else lambda capabilities: None,
    )


CASES = tuple(_case(seed, overlap=overlap) for seed in SEEDS for overlap in (False, True))
