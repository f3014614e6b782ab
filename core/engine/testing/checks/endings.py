"""An engine process that cannot go on: its requests end with an error that says why, in time.

Here a process of its own is at work, as behind a server, and the tiny model is on the platform.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from engine.client.async_engine import AsyncEngine
from engine.errors import EngineDeadError, EngineError
from engine.request import Finish, Submission
from engine.testing.checks.case import Case
from engine.testing.checks.driving import MARK, ask
from engine.testing.checks.misbehaving import TARGET
from engine.testing.checks.runner import OUTPUT, Bench
from engine.testing.checks.subject import Subject

#: Seconds that a step may take here.
STEP_S = 2.0
#: Until everybody must know that a step hangs, and until an engine must be loaded.
PATIENCE_S, LOADING_S = 20.0, 300.0


@dataclass(frozen=True, slots=True)
class _Ending:
    misbehaviour: str
    says: str  # a part of what every request is told


ENDINGS = (
    _Ending("hang", "did not end within 2 s"),
    _Ending("hang-late", "did not end within 2 s"),
    _Ending("exit", "ended with exit code 7"),
    _Ending("raise", MARK),
)


def is_told_to_all(ending: _Ending) -> Callable[[Subject], None]:
    def check(subject: Subject) -> None:
        """From its fourth step on the engine misbehaves: two requests run, and one waits."""
        asyncio.run(_end(subject, ending))

    return check


async def _end(subject: Subject, ending: _Ending) -> None:
    bench = Bench(subject, subject.capabilities.dtypes[0])
    log: list[str] = []
    async with asyncio.timeout(LOADING_S):
        engine = await AsyncEngine.start(
            _settings(subject, ending), target=TARGET, on_log=log.append
        )
    try:
        asked = [ask(str(i), bench.prompt(n), OUTPUT) for i, n in enumerate((20, 3, 9))]
        told = [asyncio.create_task(_outcome(engine, one)) for one in asked]
        done, waiting = await asyncio.wait(told, timeout=PATIENCE_S)
        for task in waiting:
            task.cancel()
        assert not waiting, (
            f"{len(waiting)} of {len(told)} requests heard nothing for {PATIENCE_S:g} s"
        )
        for task in done:
            outcome = task.result()
            assert ending.says in outcome, f"a request is told {outcome!r}, not {ending.says!r}"
        with_error = await _refusal(engine, ask("late", (1, 2), OUTPUT))
        assert ending.says in with_error, f"who comes late is told {with_error!r}"
    finally:
        await engine.close()
    assert engine.exit_code is not None, "the engine process is still there"


def _settings(subject: Subject, ending: _Ending) -> dict[str, Any]:
    origin = subject.origin
    return {
        "module": origin.module,
        "name": origin.name,
        "misbehaviour": ending.misbehaviour,
        "at": 4,
        "engine": {
            "model": str(subject.model),
            "device": subject.device,
            "dtype": subject.capabilities.dtypes[0],
            "max_requests": 2,
            "max_batch_tokens": 256,
            "num_blocks": 64,
            "step_timeout_s": STEP_S,
        },
    }


async def _outcome(engine: AsyncEngine, asked: Submission) -> str:
    """What a request was told in the end."""
    try:
        async for delta in engine.stream(asked):
            if delta.finish is Finish.ERROR:
                return delta.error or "an error without a word"
            if delta.finish is not None:
                return f"the end, {delta.finish}"
    except EngineError as error:
        return str(error)
    return "the end of its deltas"


async def _refusal(engine: AsyncEngine, asked: Submission) -> str:
    try:
        await asyncio.wait_for(engine.submit(asked), PATIENCE_S)
    except EngineDeadError as error:
        return str(error)
    return "that it was accepted"


CASES = tuple(
    Case(
        id=f"faults/process/{ending.misbehaviour}",
        level="faults",
        check=is_told_to_all(ending),
    )
    for ending in ENDINGS
)
