"""An engine in this process, for use without a server."""

from collections.abc import Mapping
from typing import Any

from engine.client.target import ASSEMBLE, Engine, build
from engine.facts import EngineFacts, Stats
from engine.request import Delta, Submission


class InProcessEngine:
    """Computes when `step` is called, and at no other time."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._loop = engine.loop

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
        """
        self._loop.submit(submission)

    def abort(self, id: str) -> list[Delta]:
        """End what is unfinished of the submission; unknown or finished ids: nothing."""
        return self._loop.abort(id)

    def step(self) -> list[Delta]:
        """Compute one step; what changed."""
        return self._loop.step()

    def close(self) -> None:
        """Give memory and device back. May be called twice."""
        self._engine.close()
