"""Faults on purpose: each ends in an error of the requests concerned, and the engine goes on.

What fails here is a part of the platform, at one call, through a wrapper of the kit; what must hold
is the same each time. Nothing that was computed wrongly is ever given out, no block stays held, the
requests that were not on the device are answered, and the same prompts are right afterwards:
nothing that the fault left in the cache may be read.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from engine.assemble import Engine
from engine.platform import Capabilities
from engine.request import Finish, Submission
from engine.testing.checks import endings
from engine.testing.checks.case import (
    Case,
    all_of,
    needs_chunked_prefill,
    needs_overlap,
    needs_prefix_reuse,
)
from engine.testing.checks.driving import (
    MARK,
    Answer,
    Driver,
    FaultyRunner,
    ask,
    assert_all_returned,
    error_of,
    expecting_failed_steps,
    run,
)
from engine.testing.checks.injected import Fault, Kind
from engine.testing.checks.interposed import interpose
from engine.testing.checks.oracle import Oracle
from engine.testing.checks.runner import OUTPUT, TOLERANCES, Bench
from engine.testing.checks.subject import Subject

#: What the core says of logits that are NaN or infinite.
NOT_FINITE = "not finite"

Skip = Callable[[Capabilities], str | None]


@dataclass(frozen=True, slots=True)
class _Scene:
    """What is asked while the fault happens. Two requests fit the device, a third one waits."""

    point: str
    kind: Kind
    at: int
    lengths: tuple[int, ...] = (20, 3)  # none: a block and a token
    n: int = 1  # continuations of the first request
    settings: tuple[tuple[str, Any], ...] = ()
    all_fail: bool = True  # else: at least one
    skip: Skip = lambda capabilities: None
    suffix: str = ""

    @property
    def id(self) -> str:
        return f"faults/{self.point}/{self.kind}{self.suffix}"


def is_reported(scene: _Scene) -> Callable[[Subject], float]:
    def check(subject: Subject) -> float:
        """Of the answers after the fault, and of those that it did not concern."""
        fault = Fault(scene.point, scene.kind, scene.at)
        faulty = subject.like(interpose(subject.spec, fault.parts))
        try:
            bench = Bench(faulty, subject.capabilities.dtypes[0])
            with bench.engine(max_requests=2, **dict(scene.settings)) as engine:
                return _plays(scene, fault, bench, engine)
        finally:
            faulty.close()

    return check


def _plays(scene: _Scene, fault: Fault, bench: Bench, engine: Engine) -> float:
    asked = [
        ask(str(i), bench.prompt(length), OUTPUT, n=scene.n if i == 0 else 1)
        for i, length in enumerate(scene.lengths or (bench.block_size + 1,))
    ]
    # Siblings wait for the first of them, so the third request would not.
    waiting = [ask("waiting", bench.prompt(9), OUTPUT)] if scene.n == 1 else []
    fault.armed = True
    answers = _until_idle(engine, *asked, *waiting)
    assert fault.fired, f"{scene.point} was called less than {scene.at} times: the case is wrong"
    concerned = {key: one for key, one in answers.items() if key[0] != "waiting"}
    oracle = bench.subject.oracle
    worst = _judge_concerned(scene, fault, oracle, concerned)
    unconcerned = [one for key, one in answers.items() if key not in concerned]
    worst = max(worst, error_of(oracle, unconcerned, OUTPUT))
    assert_all_returned(engine.loop)
    again = run(engine.loop, *(replace(one, id=f"again-{one.id}") for one in asked))
    assert_all_returned(engine.loop)
    return max(worst, error_of(oracle, again.values(), OUTPUT))


def _until_idle(engine: Engine, *asked: Submission) -> Mapping[tuple[str, int], Answer]:
    driver = Driver(engine.loop)
    driver.submit(asked)
    with expecting_failed_steps():
        return driver.finish()


def _judge_concerned(
    scene: _Scene, fault: Fault, oracle: Oracle, answers: Mapping[tuple[str, int], Answer]
) -> float:
    """Each ended in an error that says why, or is right; what came before the error is right."""
    said = NOT_FINITE if fault.garbage else MARK
    failed = {key for key, one in answers.items() if one.finishes == [Finish.ERROR]}
    assert failed, f"nobody was told of the fault: {answers}"
    if scene.all_fail:
        assert len(failed) == len(answers), (
            f"only {failed} of {set(answers)} were told of the fault"
        )
    else:
        assert len(failed) == 1, f"a fault of one request ended {failed}"
    worst = error_of(oracle, (one for key, one in answers.items() if key not in failed), OUTPUT)
    for key in failed:
        one = answers[key]
        assert one.errors, f"request {key} ended with an error that says nothing"
        assert said in one.errors[0], f"request {key} is told {one.errors[0]!r}, not {said!r}"
        assert len(one.tokens) < OUTPUT, f"request {key} got all its tokens, and an error"
        worst = max(worst, oracle.error(one.prompt, one.tokens, one.logprobs))
    return worst


def is_told_while_loading(point: str, kind: Kind, at: int) -> Callable[[Subject], float]:
    def check(subject: Subject) -> float:
        """The engine is not made, and the error says why; the next engine is right."""
        fault = Fault(point, kind, at, armed=True)
        faulty = subject.like(interpose(subject.spec, fault.parts))
        said = _refusal(faulty)
        faulty.close()
        assert said is not None, f"an engine was made although {point} failed"
        assert MARK in said, f"the error does not say why: {said}"
        bench = Bench(subject, subject.capabilities.dtypes[0])
        return bench.error(ask("after", bench.prompt(20), OUTPUT))

    return check


def _refusal(faulty: Subject) -> str | None:
    """What an engine's making raised. A cache whose size nobody asked for might shrink instead."""
    try:
        with faulty.engine(num_blocks=64):
            return None
    except Exception as error:
        return repr(error)


def runner_fails(*, late: bool, overlap: bool) -> Callable[[Subject], float]:
    def check(subject: Subject) -> float:
        """The runner itself fails, so on the narrow seam too; a request that waits goes on."""
        bench = Bench(subject, subject.capabilities.dtypes[0])
        with bench.engine(max_requests=2, overlap=overlap) as engine:
            engine.loop.runner = FaultyRunner(engine.loop.runner, {4}, late=late)
            asked = [ask(str(i), bench.prompt(n), OUTPUT) for i, n in enumerate((20, 3, 9))]
            answers = _until_idle(engine, *asked)
            assert_all_returned(engine.loop)
            failed = [one for one in answers.values() if one.finishes == [Finish.ERROR]]
            assert failed, "nobody was told of the fault"
            assert all(MARK in one.errors[0] for one in failed), "the error does not say why"
            assert answers["2", 0].finishes == [Finish.LENGTH], "a waiting request was lost"
            again = run(engine.loop, *(replace(one, id=f"again-{one.id}") for one in asked))
        right = [one for one in answers.values() if one not in failed]
        return error_of(subject.oracle, [*right, *again.values()], OUTPUT)

    return check


def _no_skip(capabilities: Capabilities) -> str | None:
    return None


def outside_programs(capabilities: Capabilities) -> str | None:
    """Where attention is a part of compiled programs, no step calls it."""
    return "attention is part of compiled programs" if capabilities.static_shapes else None


_IN_STEPS = (
    _Scene("graphs.run", "raise", 4),
    _Scene("graphs.run", "out-of-memory", 4),
    _Scene("graphs.run", "nan", 4),
    _Scene("graphs.run", "inf", 4),
    _Scene("graphs.run", "nan-in-the-first-row", 4, all_fail=False),
    _Scene("attention.plan", "raise", 4, skip=outside_programs),
    _Scene("attention.forward", "raise", 8, skip=outside_programs),
    _Scene("attention.forward", "out-of-memory", 8, skip=outside_programs),
    _Scene("attention.forward", "nan", 7, skip=outside_programs),
    _Scene(
        "attention.forward",
        "nan",
        1,
        lengths=(100,),
        settings=(("max_batch_tokens", 40),),
        skip=all_of(outside_programs, needs_chunked_prefill),
        suffix="-in-a-chunk",
    ),
    _Scene("attention.copy_blocks", "raise", 1, lengths=(), n=2, skip=needs_prefix_reuse),
)

_WHILE_LOADING: tuple[tuple[str, Kind], ...] = (
    ("attention.allocate", "out-of-memory"),
    ("memory.snapshot", "raise"),
    ("graphs.warm_up", "raise"),
)

_OVERLAPPED = tuple(
    replace(
        scene,
        settings=(*scene.settings, ("overlap", True)),
        skip=all_of(needs_overlap, scene.skip),
        suffix=f"{scene.suffix}-overlapped",
    )
    for scene in _IN_STEPS
    if scene.point == "graphs.run"
)


def _case(name: str, check: Callable[[Subject], float], skip: Skip, *, wide: bool = True) -> Case:
    tolerance = max(TOLERANCES.values())
    return Case(id=name, level="faults", check=check, tolerance=tolerance, skip=skip, wide=wide)


CASES = (
    *(_case(scene.id, is_reported(scene), scene.skip) for scene in (*_IN_STEPS, *_OVERLAPPED)),
    *(
        _case(f"faults/{point}/{kind}", is_told_while_loading(point, kind, 1), _no_skip)
        for point, kind in _WHILE_LOADING
    ),
    *(
        _case(
            f"faults/runner/{'late' if late else 'raise'}{'-overlapped' if overlap else ''}",
            runner_fails(late=late, overlap=overlap),
            needs_overlap if overlap else _no_skip,
            wide=False,
        )
        for late in (False, True)
        for overlap in (False, True)
    ),
    *endings.CASES,
)
