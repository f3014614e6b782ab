"""`engine platforms`: every installed platform, and whether it works."""

import argparse
import dataclasses
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from engine.errors import EngineError
from engine.platform import API_VERSION
from engine.plugins import Finding, PluginManager

NAME = "platforms"
SUMMARY = "show which devices can be used, and try each"
DESCRIPTION = (
    "Shows every installed platform. Those that are available compute something"
    " small, which is compared with the exact result. The exit status is 1 when one fails."
)
TIMEOUT_S = 120.0
_SELF_TEST = "from engine.cli.selftest import main; main()"


@dataclass(frozen=True, slots=True)
class Row:
    """One platform. `result` is "PASS", "unavailable" or "FAIL"; `detail` says why."""

    name: str
    result: str
    detail: str
    package: str
    priority: int | None = None  # unknown where the plugin could not be loaded
    devices: int = 0


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    plugins = PluginManager()
    plugins.load_plugins()
    rows = [examine(finding) for finding in plugins.platforms()]
    choice = _auto(plugins)
    if arguments.json:
        print(_as_json(rows, plugins, choice))
    else:
        _show(rows, choice)
    return int(any(row.result == "FAIL" for row in rows))


def examine(found: Finding, timeout_s: float = TIMEOUT_S) -> Row:
    """Try one platform, in a process of its own."""
    if found.error is not None:
        priority = found.spec.priority if found.spec else None
        return Row(found.name, "FAIL", str(found.error), found.package, priority)
    assert found.spec is not None
    result, detail = "unavailable", found.availability.detail or "the plugin gives no reason"
    if found.availability:
        problem, computed = _self_test(found.name, timeout_s)
        result = "FAIL" if problem else "PASS"
        detail = problem or f"{detail}; {computed}"
    return Row(
        found.name,
        result,
        detail,
        found.package,
        found.spec.priority,
        found.availability.devices,
    )


def _self_test(name: str, timeout_s: float) -> tuple[str, str]:
    """What went wrong, if anything; what was computed."""
    command = [sys.executable, "-c", _SELF_TEST, name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return f"hung: no result within {timeout_s:.0f} s", ""
    lines = done.stdout.splitlines()
    if done.returncode != 0 or not lines:
        said = " ".join(done.stderr.split())[-300:]
        return f"its process ended with status {done.returncode}: {said}", ""
    answer = json.loads(lines[-1])
    return answer.get("error", ""), answer.get("detail", "")


def _auto(plugins: PluginManager) -> str:
    """What --device auto would do."""
    try:
        return plugins.select("auto").name
    except EngineError as error:
        return f"error: {error}"


def _as_json(rows: Sequence[Row], plugins: PluginManager, choice: str) -> str:
    report = {
        "api": list(API_VERSION),
        "auto": choice,
        "platforms": [dataclasses.asdict(row) for row in rows],
        "failed_plugins": {name: str(error) for name, error in plugins.failed.items()},
    }
    return json.dumps(report, indent=2)


def _show(rows: Sequence[Row], choice: str) -> None:
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        colours = {"PASS": "green", "unavailable": "yellow", "FAIL": "red"}
        table = Table("platform", "result", "detail", "package")
        for row in rows:
            result = f"[{colours[row.result]}]{row.result}"
            table.add_row(row.name, result, escape(row.detail), row.package)
        Console().print(table)
    else:
        for row in rows:
            print(f"{row.result:12} {row.name:12} {row.detail} ({row.package})")
    print(f"--device auto: {choice}")
