"""What passes between rank 0 and another rank, pickled, through an inherited socket.

rank 0 → rank    Start, then Load, then Batch, Reset, … and Stop
rank → rank 0    Joining, Loaded; or Failed, and nothing after it
"""

from dataclasses import dataclass
from typing import Any, TypeAlias

from engine import errors
from engine.batch import Batch
from engine.errors import EngineDeadError, EngineError


@dataclass(frozen=True, slots=True)
class Start:
    """Build the runner that `target`, a "module:function" of (settings, rank, joining), makes."""

    target: str
    settings: dict[str, Any]
    path: list[str]  # of rank 0's modules: what it can import, the others can
    step_timeout_s: float | None  # after it, a rank shows where it hangs; rank 0 ends them all


@dataclass(frozen=True, slots=True)
class Load: ...


@dataclass(frozen=True, slots=True)
class Reset: ...


@dataclass(frozen=True, slots=True)
class Stop: ...


@dataclass(frozen=True, slots=True)
class Joining:
    """The rank has what it needs so far, and goes to meet the others."""


@dataclass(frozen=True, slots=True)
class Loaded:
    num_blocks: int


@dataclass(frozen=True, slots=True)
class Failed:
    """An error on its way to rank 0."""

    kind: str  # the class in `engine.errors`; EngineDeadError for what was not raised on purpose
    message: str

    @classmethod
    def of(cls, error: BaseException) -> "Failed":
        if isinstance(error, EngineError):
            known = (base.__name__ for base in type(error).__mro__ if base.__name__ in vars(errors))
            return cls(next(known), str(error))
        return cls("EngineDeadError", f"{type(error).__name__}: {error}")

    def error(self, who: str) -> EngineError:
        """The same error at rank 0; `who` is "rank 1 of 2"."""
        kind: type[EngineError] = vars(errors).get(self.kind, EngineDeadError)
        return kind(f"{who} failed: {self.message}")


ToRank: TypeAlias = Start | Load | Batch | Reset | Stop
FromRank: TypeAlias = Joining | Loaded | Failed
