"""Runs the kit in a process of its own, so that a case which hangs or crashes is only a failure.

The process sends what it begins and what came of it. When it falls silent for longer than a case
may take, or ends, the case under way has failed, and another process goes on with the next one.
"""

import multiprocessing
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from signal import Signals
from typing import Any

from engine.errors import EngineError
from engine.platform import Capabilities
from engine.plugins import PluginManager
from engine.testing.checks import Result, Status, Subject, cases, run, strict
from engine.testing.known import check_known

#: Seconds until the process has imported everything and made the platform.
START_S = 300.0


@dataclass(frozen=True, slots=True)
class Request:
    """What to examine. It pickles."""

    device: str  # as given to `--device`
    levels: tuple[str, ...]
    known: Mapping[str, str] = field(default_factory=dict)  # failures: reasons by case id
    skip: int = 0  # cases that were run before
    most_s: float = float("inf")  # that any case may take, whatever it says itself


@dataclass(slots=True)
class Examined:
    """What came of it. Without capabilities: the platform could not even be made."""

    results: list[Result]
    capabilities: Capabilities | None = None


@dataclass(frozen=True, slots=True)
class _Begun:
    id: str
    level: str
    limit_s: float


def examine_apart(
    request: Request, *, on_case: Callable[[str], None] = lambda name: None
) -> Examined:
    """Run every case of the levels, whatever happens.

    Raises:
        EngineError: the process could not begin: a plugin that breaks, or known failures of cases
            that do not exist.
    """
    examined = Examined([])
    while True:
        with _Process(request, skip=len(examined.results)) as process:
            lost = process.gather(examined, on_case)
        if lost is None:
            return examined
        examined.results.append(lost)


class _Process:
    def __init__(self, request: Request, *, skip: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._request = replace(request, skip=skip)
        self._process = context.Process(
            target=_examine, args=(self._request, theirs), name="certify"
        )
        self._process.start()
        theirs.close()

    def __enter__(self) -> "_Process":
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.kill()
        self._process.join()
        self._ours.close()

    def gather(self, examined: Examined, on_case: Callable[[str], None]) -> Result | None:
        """Results, until all are there, or one was lost: then its failure."""
        under_way, limit_s = None, START_S
        while True:
            try:
                message = self._ours.recv() if self._ours.poll(limit_s) else None
            except (EOFError, ConnectionResetError):
                return self._lost(under_way, f"the process ended {self._ending()}")
            match message:
                case None:
                    return self._lost(under_way, f"it did not end within {limit_s:g} s")
                case Capabilities():
                    examined.capabilities = message
                case _Begun():
                    under_way, limit_s = message, min(message.limit_s, self._request.most_s)
                    on_case(message.id)
                case Result():
                    examined.results.append(message)
                case EngineError():
                    raise message
                case _Done():
                    return None

    def _ending(self) -> str:
        self._process.join(5)
        code = self._process.exitcode
        return f"by {Signals(-code).name}" if code is not None and code < 0 else f"with {code}"

    def _lost(self, begun: _Begun | None, reason: str) -> Result:
        if begun is None:
            raise EngineError(f"the examination could not begin: {reason}")
        result = Result(
            id=begun.id, level=begun.level, status=Status.FAILED, seconds=0.0, reason=reason
        )
        return strict(result, self._request.known)


@dataclass(frozen=True, slots=True)
class _Done:
    """Nothing is left to examine."""


def examine(
    subject: Subject, levels: Sequence[str], known: Mapping[str, str], *, skip: int = 0
) -> Iterator[_Begun | Result]:
    """Run the cases of the levels but the first `skip`, in this process.

    Raises:
        ConfigError: a known failure is of no case.
    """
    check_known(known)
    for case in [case for level in levels for case in cases(level)][skip:]:
        yield _Begun(case.id, case.level, case.limit_s)
        yield strict(run(case, subject), known)


def _examine(request: Request, wire: Connection) -> None:
    """The process: tell everything, then wait for nothing."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        for message in _messages(request):
            wire.send(message)
        wire.send(_Done())
    except EngineError as error:
        wire.send(error)
    wire.close()
    os._exit(0)  # libraries of a device may wait for threads that never end


def _messages(request: Request) -> Iterator[Any]:
    spec = PluginManager().select(request.device)
    for name, value in spec.environment(0).items():
        os.environ.setdefault(name, value)  # before anything here imports torch
    with tempfile.TemporaryDirectory() as folder:
        subject = Subject(spec, Path(folder), device=request.device)
        try:
            yield subject.capabilities
        except Exception as error:
            yield _unmade(error)
            return
        yield from examine(subject, request.levels, request.known, skip=request.skip)
        subject.close()


def _unmade(error: Exception) -> Result:
    return Result(
        id="discovery/is-made",
        level="discovery",
        status=Status.FAILED,
        seconds=0.0,
        reason=f"the platform cannot be made: {type(error).__name__}: {error}",
    )


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
