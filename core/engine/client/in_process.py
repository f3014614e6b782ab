"""An engine in this process, for use without a server."""

from collections.abc import Mapping
from typing import Any

from engine.client.target import ASSEMBLE, Engine, build
from engine.facts import EngineFacts, Stats
from engine.request import Delta, Submission
from engine.watchdog import InterruptingWatchdog


class InProcessEngine:
    """Computes when `step` is called, and at no other time."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._loop = engine.loop
        self._watchdog = InterruptingWatchdog(engine.facts.step_timeout_s)

    @classmethod
    def start(cls, settings: Mapping[str, Any], *, target: str = ASSEMBLE) -> "InProcessEngine":
        """Make an engine of `EngineConfig`'s fields.

        Raises:
            EngineError: it cannot be made: ModelError, ConfigError and others.
        """
        return cls(build(target, settings))

    @property
    def facts(self) -> EngineFacts:
        return self._engine.facts

    @property
    def stats(self) -> Stats:
        return self._loop.stats

    @property
    def idle(self) -> bool:
        """Nothing waits, runs or is in flight."""
        return self._loop.idle

    def submit(self, submission: Submission) -> None:
        """Let the submission wait for its turn.

        Raises:
            RequestError: the engine refuses it.
            CapacityError: it could never fit.
            EngineDeadError: a step of this engine hung.
        """
        if self._watchdog.died is not None:
            raise self._watchdog.died
        self._loop.submit(submission)

    def abort(self, id: str) -> list[Delta]:
        """End what is unfinished of the submission; unknown or finished ids: nothing."""
        return self._loop.abort(id)

    def step(self) -> list[Delta]:
        """Compute one step; what changed.

        Raises:
            EngineDeadError: several steps in a row failed, or this one or an earlier one hung.
        """
        return self._watchdog.run(self._loop.step)

    def close(self) -> None:
        """Give memory and device back. May be called twice."""
        self._watchdog.close()
        self._engine.close()
