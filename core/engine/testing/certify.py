"""`engine certify`: runs the conformance kit on one device, and writes a certificate."""

import dataclasses
import json
import os
import platform as machine
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from engine.errors import ConfigError
from engine.platform import API_VERSION, Availability, PlatformSpec
from engine.plugins import PluginManager
from engine.testing.checks import LEVELS, Result, Status, Subject, cases
from engine.testing.checks import run as run_case

WIDTH = 140  # columns, where the output is no terminal
COLOURS = {Status.PASSED: "green", Status.FAILED: "red", Status.SKIPPED: "yellow"}


def run(device: str, json_path: str | None = None) -> int:
    """Examine the platform of `--device`; print a table; write the certificate to `json_path`.

    Returns the exit status: 0 when nothing failed, 1 otherwise.

    Raises:
        ConfigError: the device is unknown or unavailable, or checks are switched off.
        PluginError: its plugin cannot be loaded.
    """
    if not __debug__:
        raise ConfigError("certify needs Python's assertions; run it without -O and PYTHONOPTIMIZE")
    spec = PluginManager().select(device)
    if device.partition(":")[0] == "auto":
        device = spec.name
    results = examine(spec, device)
    certificate = certify(spec, device, results)
    _print(certificate, results)
    if json_path is not None:
        Path(json_path).write_text(json.dumps(certificate, indent=2) + "\n", encoding="utf-8")
    return 0 if certificate["passed"] else 1


def examine(
    spec: PlatformSpec,
    device: str,
    levels: Sequence[str] = LEVELS,
    *,
    counts_up: bool = False,
) -> list[Result]:
    """Run every case of the levels; shows which one, on a terminal."""
    for name, value in spec.environment(0).items():
        os.environ.setdefault(name, value)  # before anything here imports torch
    from engine.testing.checks import tiny_model

    results = []
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory() as folder, console.status("") as status:
        model = tiny_model.make(Path(folder))
        subject = Subject(spec, model, device=device, counts_up=counts_up)
        for case in (case for level in levels for case in cases(level)):
            status.update(case.id)
            results.append(run_case(case, subject))
        subject.close()
    return results


def certify(spec: PlatformSpec, device: str, results: Sequence[Result]) -> dict[str, Any]:
    """The certificate: what was examined, with which versions, and every result. Plain JSON."""
    totals = Counter(one.status.value for one in results)
    return {
        "format": 1,
        "passed": totals["failed"] == 0 and totals["passed"] > 0,
        "totals": {status.value: totals[status.value] for status in Status},
        "platform": spec.name,
        "device": device,
        "devices": _describe(spec),
        "contract": {"engine": list(API_VERSION), "plugin": list(spec.api)},
        "versions": {
            "python": machine.python_version(),
            "torch": _version("torch"),
            "transformers": _version("transformers"),
            "engine": _version("engine"),
            **_plugin_version(spec),
        },
        "system": f"{machine.system()} {machine.machine()}",
        "cases": [{**dataclasses.asdict(one), "status": one.status.value} for one in results],
    }


def _describe(spec: PlatformSpec) -> str:
    found = spec.probe()
    return found.detail if isinstance(found, Availability) else ""


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _plugin_version(spec: PlatformSpec) -> dict[str, str | None]:
    """Of the distributions that hold the plugin's package."""
    package = spec.probe.__module__.partition(".")[0]
    return {name: _version(name) for name in packages_distributions().get(package, ())}


def _print(certificate: dict[str, Any], results: Sequence[Result]) -> None:
    """What was measured and what failed, one by one; what was skipped, by reason; the totals."""
    console = Console(file=sys.stdout)
    if not console.is_terminal:
        console.width = WIDTH
    cases = Table(Column("case", no_wrap=True), "result", "error", "tolerance", "note", box=None)
    for one in results:
        if one.status is Status.FAILED or one.error is not None:
            cases.add_row(
                one.id,
                f"[{COLOURS[one.status]}]{one.status.value}",
                "" if one.error is None else f"{one.error:.2g}",
                "" if one.tolerance is None else f"{one.tolerance:.2g}",
                escape(one.reason),
            )
    console.print(cases)
    for reason, count in Counter(one.reason for one in results if _skipped(one)).items():
        console.print(f"{count} skipped: {escape(reason)}")
    levels = Table("level", *(status.value for status in Status), box=None)
    for level in dict.fromkeys(one.level for one in results):
        counts = Counter(one.status for one in results if one.level == level)
        levels.add_row(level, *(str(counts[status]) for status in Status))
    console.print(levels)
    totals = ", ".join(f"{count} {name}" for name, count in certificate["totals"].items())
    contract = ".".join(map(str, certificate["contract"]["plugin"]))
    verdict = "conforms to" if certificate["passed"] else "does NOT conform to"
    console.print(f"{certificate['device']} {verdict} contract {contract}: {totals}")


def _skipped(one: Result) -> bool:
    return one.status is Status.SKIPPED
