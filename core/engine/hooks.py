"""Every hook there is. Called at start, or in the server process; never inside a step."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    import argparse

    from engine.config import EngineConfig
    from engine.platform.base import Platform, PlatformSpec
    from engine.platform.ops import OpTable

hookspec = pluggy.HookspecMarker("engine")
hookimpl = pluggy.HookimplMarker("engine")


@hookspec
def engine_platforms() -> "Sequence[PlatformSpec]":
    """Platforms this plugin offers. Must not import a driver."""
    return ()


@hookspec
def engine_register_ops(table: "OpTable", platform: "Platform") -> None:
    """Add operations to the `table` of a `platform`, also one that is not your own.

    Called once for each rank, after the platform has added its own.
    """


@hookspec
def engine_check_config(config: "EngineConfig") -> None:
    """Raise ConfigError to refuse to start with this `config`."""


@hookspec
def engine_add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add subcommands to the command line. Set `run` to a function of the parsed arguments."""
