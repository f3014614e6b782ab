"""`engine certify`: runs the conformance kit on one device, and writes a certificate."""

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from engine.errors import ConfigError
from engine.plugins import PluginManager
from engine.testing import certificate
from engine.testing.apart import Request, examine_apart
from engine.testing.checks.case import LEVELS, PERF
from engine.testing.known import read_known
from engine.testing.report import show


def run(
    device: str,
    json_path: str | None = None,
    *,
    levels: Sequence[str] = (),
    perf: bool = False,
    known_path: str | None = None,
) -> int:
    """Examine the platform of `--device`; print a table; write the certificate to `json_path`.

    `levels`: these only; none: all but "perf", which `perf` adds. Returns the exit status: 0 when
    nothing failed, 1 otherwise.

    Raises:
        ConfigError: the device is unknown or unavailable, a level is unknown, the list of known
            failures is wrong, or checks are switched off.
        PluginError: its plugin cannot be loaded.
    """
    if not __debug__:
        raise ConfigError("certify needs Python's assertions; run it without -O and PYTHONOPTIMIZE")
    chosen = choose_levels(levels, perf=perf)
    known = read_known(known_path) if known_path else {}
    spec = PluginManager().select(device)
    if device.partition(":")[0] == "auto":
        device = spec.name
    console = Console(stderr=True)
    with ExitStack() as stack:
        status = stack.enter_context(console.status(""))
        request = Request(device, chosen, known)
        examined = examine_apart(request, on_case=status.update)
    made = certificate.make(spec, device, examined)
    show(made, examined.results, sys.stdout)
    if json_path is not None:
        Path(json_path).write_text(certificate.dump(made), encoding="utf-8")
    return 0 if made["passed"] else 1


def choose_levels(levels: Sequence[str], *, perf: bool) -> tuple[str, ...]:
    """Those asked for, in the kit's order.

    Raises:
        ConfigError: one of them does not exist.
    """
    every = (*LEVELS, PERF)
    if unknown := [one for one in levels if one not in every]:
        raise ConfigError(f"unknown level {', '.join(unknown)}; there are {', '.join(every)}")
    wanted = {*(levels or LEVELS), *((PERF,) if perf else ())}
    return tuple(one for one in every if one in wanted)
