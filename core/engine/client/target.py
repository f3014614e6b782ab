"""What a client runs, in its own process or in another: anything with a loop and facts."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from engine import garbage
from engine.errors import ConfigError
from engine.facts import EngineFacts, Stats
from engine.request import Delta, Submission

#: "module:function" that makes an engine of its settings.
ASSEMBLE = "engine.assemble:assemble"


class Loop(Protocol):
    """`engine.loop.EngineLoop`, as far as clients use it."""

    @property
    def idle(self) -> bool: ...

    @property
    def stats(self) -> Stats: ...

    def submit(self, submission: Submission) -> None: ...

    def abort(self, id: str) -> list[Delta]: ...

    def step(self) -> list[Delta]: ...


class Engine(Protocol):
    """`engine.assemble.Engine`, as far as clients use it."""

    @property
    def loop(self) -> Loop: ...

    @property
    def facts(self) -> EngineFacts: ...

    def close(self) -> None: ...


_Make = Callable[[Mapping[str, Any]], Engine]


def build(target: str, settings: Mapping[str, Any]) -> Engine:
    """Call the `target` with the settings.

    Raises:
        ConfigError: there is no such function.
        EngineError: what the function raises.
    """
    module, _, function = target.partition(":")
    with garbage.kept_for_later():
        try:
            make: Callable[[Mapping[str, Any]], Engine] = vars(importlib.import_module(module))[
                function
            ]
        except (ImportError, KeyError, ValueError) as error:
            raise ConfigError(f"the engine target {target!r} cannot be loaded: {error}") from error
        return make(settings)
