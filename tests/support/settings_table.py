"""The tables of docs/settings.md, made from the code. Run this file to print them."""

from collections.abc import Mapping

from engine.cli.options import ENGINE, SERVER, Words, default_text, flag_of
from engine.config import EngineConfig
from engine.server.options import ServerOptions


def engine_table() -> str:
    return _table(EngineConfig, ENGINE, {"model": "`MODEL`"})


def server_table() -> str:
    return _table(ServerOptions, SERVER, {})


def _table(owner: type, words: Mapping[str, Words], flags: Mapping[str, str]) -> str:
    rows = [
        f"| `{name}` | {flags.get(name) or f'`{flag_of(name, entry)}`'} |"
        f" {default_text(owner, name)} | {entry.help} |"
        for name, entry in words.items()
    ]
    return "\n".join(["| setting | option | default | meaning |", "|---|---|---|---|", *rows])


if __name__ == "__main__":
    print(engine_table(), server_table(), sep="\n\n")
