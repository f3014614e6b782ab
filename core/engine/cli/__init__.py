"""The command line: `engine serve`, `generate`, `chat`, `explain` and the others of COMMANDS.

One module a command. It states NAME, SUMMARY and DESCRIPTION, adds its options when its command was
named, and imports what it needs when it runs: `engine --help` is quick.
"""

import argparse
import logging
import sys
import traceback
from collections.abc import Sequence

from engine import __version__
from engine.cli import (
    bench,
    certify,
    chat,
    evaluate,
    explain,
    generate,
    new_plugin,
    plan,
    platforms,
    serve,
    simulate,
)
from engine.errors import EngineError, PluginError
from engine.plugins import PluginManager

COMMANDS = (
    serve,
    generate,
    chat,
    bench,
    platforms,
    evaluate,
    certify,
    explain,
    plan,
    simulate,
    new_plugin,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. The exit status: its own; 2 for an error raised on purpose; 130 for ^C."""
    words = sys.argv[1:] if argv is None else argv
    debug = "--debug" in words
    if debug:
        logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        arguments = make_parser(words).parse_args(words)
        return _run(arguments)
    except EngineError as error:
        if debug:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def make_parser(words: Sequence[str]) -> argparse.ArgumentParser:
    """Every command, those of installed plugins among them, and the options of those in `words`.

    Raises:
        PluginError: a plugin's command could not be added.
    """
    parser = argparse.ArgumentParser(
        "engine", description="Serves language models on any accelerator."
    )
    parser.add_argument("--version", action="version", version=f"engine {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in COMMANDS:
        command = commands.add_parser(
            module.NAME, help=module.SUMMARY, description=module.DESCRIPTION
        )
        command.set_defaults(run=module.run)
        if module.NAME in words:
            module.add_options(command)
    PluginManager().hook.engine_add_commands(commands=commands)
    for command in commands.choices.values():
        command.add_argument("--debug", action="store_true", help="show where an error comes from")
    return parser


def _run(arguments: argparse.Namespace) -> int:
    given = vars(arguments)
    if not callable(run := given.get("run")):
        raise PluginError("this command, added by a plugin, has set no function `run`")
    status = run(arguments)
    return status if isinstance(status, int) else 0
