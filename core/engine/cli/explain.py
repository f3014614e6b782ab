"""`engine explain`: every setting and every part of an engine, and why it is so."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING

from engine.cli import options

if TYPE_CHECKING:
    from engine.explain import Explanation, Part

NAME = "explain"
SUMMARY = "show what an engine would be made of, and why"
DESCRIPTION = (
    "Shows each setting as the engine would use it and who decided it, and each part that would be"
    " chosen, with the reasons why the others are refused. No weights are loaded, except of a model"
    " that runs through transformers' code. The exit status is 1 where a part is missing."
)


def add_options(parser: argparse.ArgumentParser) -> None:
    options.add_model(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    options.add_engine(parser)


def run(arguments: argparse.Namespace) -> int:
    from engine.explain import explain

    found = explain(options.engine_settings(arguments))
    if arguments.json:
        print(json.dumps({**dataclasses.asdict(found), "possible": found.possible}, indent=2))
    else:
        sys.stdout.writelines(f"{line}\n" for line in lines(found))
    return 0 if found.possible else 1


def lines(found: "Explanation") -> Iterator[str]:
    """For people."""
    yield f"{found.model.name} ({found.model.architecture}) on {found.device}"
    yield f"platform {found.platform} ({found.package})"
    yield ""
    yield "Settings"
    values = [(one.name, _shown(one.value), one.decided_by, one.why) for one in found.settings]
    widths = [max(len(row[column]) for row in values) for column in range(3)]
    for name, value, decided_by, why in values:
        padded = (name.ljust(widths[0]), value.ljust(widths[1]), decided_by.ljust(widths[2]))
        yield f"  {'  '.join(padded)}  {why}".rstrip()
    yield ""
    yield f"Parts ({found.basis})"
    for kind, parts in groupby(found.parts, lambda part: part.kind):
        yield f"  {kind}"
        for part in parts:
            yield from _of_part(part)


def _of_part(part: "Part") -> Iterator[str]:
    times = f", {part.times} times" if part.times > 1 else ""
    note = f" ({part.note})" if part.note else ""
    yield f"    {part.question}{times}: {part.chosen or 'NOTHING SERVES'}{note}"
    reasons: dict[str, list[str]] = {}
    for one in part.refused:
        reasons.setdefault(one.why, []).append(one.name)
    for why, names in reasons.items():
        yield f"      not {', '.join(names)}: {why}"


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return "unset" if value is None else str(value)
