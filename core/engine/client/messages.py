"""What crosses the border between a client and the engine process, as msgpack.

client → engine     Start, then Submit, Abort, Stop
engine → client     Ready, then Progress after every step; or Died, and nothing after it
"""

from typing import Any

import msgspec

from engine import errors
from engine.errors import EngineError, RequestError
from engine.facts import EngineFacts, Stats
from engine.request import Delta, Submission


class Start(msgspec.Struct, tag=True, frozen=True):
    """First of all: build the engine that `target`, a "module:function" of `settings`, makes."""

    target: str
    settings: dict[str, Any]
    path: list[str]  # of the client's modules: what it can import, the engine can


class Submit(msgspec.Struct, tag=True, frozen=True):
    submission: Submission


class Abort(msgspec.Struct, tag=True, frozen=True):
    id: str


class Stop(msgspec.Struct, tag=True, frozen=True):
    """End the process; what is unfinished is dropped."""


class Failure(msgspec.Struct, frozen=True):
    """An error on its way to the other process."""

    kind: str  # the class in `engine.errors`
    message: str
    parameter: str | None = None

    @classmethod
    def of(cls, error: BaseException) -> "Failure":
        """Errors that were not raised on purpose travel as EngineDeadError."""
        if isinstance(error, EngineError):
            parameter = error.parameter if isinstance(error, RequestError) else None
            return cls(_kind(error), str(error), parameter)
        return cls("EngineDeadError", f"{type(error).__name__}: {error}")

    def error(self) -> EngineError:
        found = _KINDS[self.kind]
        if issubclass(found, RequestError):
            return found(self.message, self.parameter)
        return found(self.message)


class Ready(msgspec.Struct, tag=True, frozen=True):
    facts: EngineFacts
    stats: Stats


class Progress(msgspec.Struct, tag=True, frozen=True):
    """All that happened since the last one."""

    stats: Stats
    accepted: list[str] = []
    refused: list[tuple[str, Failure]] = []
    deltas: list[Delta] = []


class Died(msgspec.Struct, tag=True, frozen=True):
    failure: Failure


FromClient = Start | Submit | Abort | Stop
FromEngine = Ready | Progress | Died

_KINDS = {
    name: found
    for name, found in vars(errors).items()
    if isinstance(found, type) and issubclass(found, EngineError)
}


def _kind(error: EngineError) -> str:
    """The error's class, or the nearest of its bases that the other process knows."""
    return next(base.__name__ for base in type(error).__mro__ if _KINDS.get(base.__name__) is base)
