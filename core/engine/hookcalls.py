"""Calls hooks so that whatever goes wrong in one names the plugin at fault."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pluggy

from engine.config import EngineConfig
from engine.errors import EngineError, PluginError
from engine.platform.base import Platform
from engine.platform.ops import OpTable

if TYPE_CHECKING:
    import argparse


class HookCalls:
    """Each hook as a method. Plugins are called one by one, so that an error names its plugin.

    Every method raises PluginError when a plugin breaks; an EngineError that a plugin raised on
    purpose passes as it is.
    """

    def __init__(self, plugins: pluggy.PluginManager) -> None:
        self._plugins = plugins

    def engine_register_ops(self, *, table: OpTable, platform: Platform) -> None:
        self._call("engine_register_ops", table=table, platform=platform)

    def engine_check_config(self, *, config: EngineConfig) -> None:
        self._call("engine_check_config", config=config)

    def engine_add_commands(
        self, *, commands: "argparse._SubParsersAction[argparse.ArgumentParser]"
    ) -> None:
        self._call("engine_add_commands", commands=commands)

    def of(self, plugin: object, hook: str, **arguments: object) -> list[Any]:
        """What one plugin alone answers."""
        others = [other for other in self._plugins.get_plugins() if other is not plugin]
        answers: list[Any] = self._plugins.subset_hook_caller(hook, others)(**arguments)
        return answers

    def _call(self, hook: str, **arguments: object) -> None:
        for name, plugin in self._plugins.list_name_plugin():
            with blaming(
                f"plugin {name.partition(':')[2]!r}", f"broke in {hook}", passing=EngineError
            ):
                self.of(plugin, hook, **arguments)


@contextmanager
def blaming(who: str, what: str, *, passing: type[EngineError] | tuple[()] = ()) -> Iterator[None]:
    """Turn whatever a plugin's code raises into a PluginError that says whose fault it is.

    `passing` errors pass as they are. SystemExit counts as breaking: no plugin ends the engine.
    """
    try:
        yield
    except passing:
        raise
    except (Exception, SystemExit) as error:
        raise PluginError(f"{who} {what}: {type(error).__name__}: {error}") from error
