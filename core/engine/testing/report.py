"""A certificate for people: what was measured and what failed, what was skipped, the totals."""

from collections import Counter
from collections.abc import Sequence
from typing import IO, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from engine.testing.checks.case import Result, Status

WIDTH = 140  # columns, where the output is no terminal
COLOURS = {
    Status.PASSED: "green",
    Status.FAILED: "red",
    Status.SKIPPED: "yellow",
    Status.KNOWN: "magenta",
}


def show(certificate: dict[str, Any], results: Sequence[Result], file: IO[str]) -> None:
    """Print it."""
    console = Console(file=file)
    if not console.is_terminal:
        console.width = WIDTH
    console.print(_cases(results))
    skipped = Counter(one.reason for one in results if one.status is Status.SKIPPED)
    for reason, count in skipped.items():
        console.print(f"{count} skipped: {escape(reason)}")
    console.print(_levels(certificate["levels"]))
    totals = ", ".join(f"{count} {name}" for name, count in certificate["totals"].items())
    contract = ".".join(map(str, certificate["contract"]["plugin"]))
    verdict = "conforms to" if certificate["passed"] else "does NOT conform to"
    seconds = f"in {certificate['seconds']:.0f} s"
    console.print(f"{certificate['device']} {verdict} contract {contract}: {totals}, {seconds}")


def _cases(results: Sequence[Result]) -> Table:
    """What has a number or a failure; the rest only passed."""
    table = Table(Column("case", no_wrap=True), "result", "error", "tolerance", "note", box=None)
    for one in results:
        bad = one.status in (Status.FAILED, Status.KNOWN)
        if bad or one.error is not None or one.values:
            values = ", ".join(f"{name} {value:.4g}" for name, value in one.values.items())
            table.add_row(
                one.id,
                f"[{COLOURS[one.status]}]{one.status.value}",
                "" if one.error is None else f"{one.error:.2g}",
                "" if one.tolerance is None else f"{one.tolerance:.2g}",
                escape(one.reason or values),
            )
    return table


def _levels(levels: Sequence[dict[str, Any]]) -> Table:
    table = Table("level", *(status.value for status in Status), "seconds", box=None)
    for one in levels:
        counts = (str(one[status.value]) for status in Status)
        table.add_row(one["name"], *counts, f"{one['seconds']:.1f}")
    return table
