"""An engine whose runner misbehaves for good, for a process of its own. Without torch."""

import os
import time
from collections.abc import Mapping
from typing import Any

from engine.assemble import Engine, assemble
from engine.batch import Batch
from engine.platform import Pending, Runner
from engine.testing.checks.driving import MARK, FaultyRunner
from engine.testing.checks.origin import Origin
from engine.testing.checks.subject import OnlyThis

#: "module:function", as a client's engine process takes it.
TARGET = f"{__name__}:build"

#: Longer than anybody waits.
FOR_EVER_S = 3600.0


def build(settings: Mapping[str, Any]) -> Engine:
    """The engine of `settings["engine"]`, which are EngineConfig's fields, on the platform of
    `settings["module"]` and `settings["name"]`. From its step `settings["at"]` on it does what
    `settings["misbehaviour"]` says: "hang", "hang-late", "exit" or "raise".
    """
    spec = Origin(settings["module"], settings["name"]).spec()
    engine = assemble(settings["engine"], OnlyThis(spec))
    engine.loop.runner = Misbehaving(
        engine.loop.runner, settings["misbehaviour"], at=int(settings["at"])
    )
    return engine


class Misbehaving(FaultyRunner):
    """Does as it should before step `at`, counted from 1."""

    def __init__(self, inner: Runner, misbehaviour: str, *, at: int) -> None:
        super().__init__(inner, set(), late=False)
        self._misbehaviour = misbehaviour
        self._at = at
        self._steps = 0

    def execute(self, batch: Batch) -> Pending:
        self._steps += 1
        if self._steps < self._at:
            return super().execute(batch)
        match self._misbehaviour:
            case "hang":
                time.sleep(FOR_EVER_S)
            case "hang-late":
                return Pending(batch, lambda: time.sleep(FOR_EVER_S))  # type: ignore[arg-type,return-value]  # never returns
            case "exit":
                os._exit(7)
        raise RuntimeError(f"{MARK}: no step works any more")
