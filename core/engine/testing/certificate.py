"""A certificate: what was examined, with which versions, and every result. Plain JSON.

Format 2. What a reader may count on: `passed`, `platform`, `contract`, `capabilities`, `levels` and
`cases`; a case has an `id`, a `level` and a `status`, and what applies of `error`, `tolerance`,
`values`, `reason` and `seconds`.
"""

import dataclasses
import datetime
import json
import platform as machine
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from typing import Any

from engine.platform import API_VERSION, Availability, Capabilities, PlatformSpec
from engine.testing.apart import Examined
from engine.testing.checks.case import Result, Status

FORMAT = 2

#: What decides the results beside the engine and the plugin.
DISTRIBUTIONS = ("torch", "transformers", "numpy", "safetensors")


def make(spec: PlatformSpec, device: str, examined: Examined) -> dict[str, Any]:
    """The certificate of an examination."""
    results = examined.results
    totals = Counter(one.status for one in results)
    return {
        "format": FORMAT,
        "passed": totals[Status.FAILED] == 0 and totals[Status.PASSED] > 0,
        "totals": {status.value: totals[status] for status in Status},
        "seconds": round(sum(one.seconds for one in results), 1),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "platform": spec.name,
        "device": device,
        "devices": _describe(spec),
        "contract": {"engine": list(API_VERSION), "plugin": list(spec.api)},
        "versions": _versions(spec),
        "system": f"{machine.system()} {machine.machine()}",
        "capabilities": _plain(examined.capabilities),
        "levels": [
            _level(name, [one for one in results if one.level == name])
            for name in dict.fromkeys(one.level for one in results)
        ],
        "cases": [_case(one) for one in results],
    }


def dump(certificate: dict[str, Any]) -> str:
    """As text: a line for each entry, each level and each case."""
    lines = []
    for key, value in certificate.items():
        if key in ("levels", "cases"):
            rows = ",\n".join(f"    {json.dumps(one, ensure_ascii=False)}" for one in value)
            lines.append(f'  "{key}": [\n{rows}\n  ]')
        else:
            lines.append(f'  "{key}": {json.dumps(value, ensure_ascii=False)}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _level(name: str, results: Sequence[Result]) -> dict[str, Any]:
    counts = Counter(one.status for one in results)
    seconds = round(sum(one.seconds for one in results), 1)
    return {"name": name, **{one.value: counts[one] for one in Status}, "seconds": seconds}


def _case(one: Result) -> dict[str, Any]:
    """What does not apply is left out."""
    found = {
        **dataclasses.asdict(one),
        "status": one.status.value,
        "seconds": round(one.seconds, 3),
        "error": None if one.error is None else float(f"{one.error:.3g}"),
        "values": {name: float(f"{value:.4g}") for name, value in one.values.items()},
    }
    return {key: value for key, value in found.items() if value not in (None, "", {})}


def _plain(capabilities: Capabilities | None) -> dict[str, Any]:
    found = {} if capabilities is None else dataclasses.asdict(capabilities)
    return {
        key: sorted(value) if isinstance(value, frozenset) else value
        for key, value in found.items()
    }


def _describe(spec: PlatformSpec) -> str:
    found = spec.probe()
    return found.detail if isinstance(found, Availability) else ""


def _versions(spec: PlatformSpec) -> dict[str, str | None]:
    """Of Python, of what computes beside the plugin, and of the distributions that hold it."""
    package = spec.probe.__module__.partition(".")[0]
    plugin = packages_distributions().get(package, ())
    names = dict.fromkeys(("engine", *DISTRIBUTIONS, *plugin))
    return {"python": machine.python_version(), **{name: _version(name) for name in names}}


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
