"""Writes docs/devices.md, the table of features by platform, from the certificates.

    engine certify --device NAME --json docs/certificates/NAME.json
    python tools/certify_without_device.py NAME_on_cpu --json docs/certificates/NAME_on_cpu.json
    python tools/device_table.py

Nothing in the table is claimed by hand: a feature is there when the platform declares it and every
case of the kit that needs it passed. A device that an extra of pyproject.toml names and that nobody
certified, is untested on hardware: what a stand-in of stand_ins.toml showed of its platform's code
is in a table of its own.
"""

import json
import tomllib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CERTIFICATES = ROOT / "docs" / "certificates"
PAGE = ROOT / "docs" / "devices.md"
STAND_INS = ROOT / "tools" / "stand_ins.toml"

FORMAT = 2
UNTESTED = "untested"
ON_HARDWARE = "untested on hardware"

#: Extras that name no device.
NO_DEVICES = {"dev"}

LEVELS = (
    "discovery",
    "memory",
    "ops",
    "attention",
    "runner",
    "scheduler",
    "shapes",
    "faults",
    "ranks",
    "perf",  # only when asked for
)

#: Feature: the capability that declares it, and the cases that need it.
FEATURES = {
    "prefix reuse": ("prefix_reuse", "runner/*/prefix-hit"),
    "chunked prefill": ("chunked_prefill", "runner/*/chunked"),
    "mixed batches": ("mixed_batches", "attention/*/mixed"),
    "overlapped steps": ("overlap", "runner/*/overlapped"),
    "static shapes": ("static_shapes", "shapes/*"),
}
DTYPES = {dtype: f"runner/{dtype}/*" for dtype in ("float32", "bfloat16", "float16")}

INTRODUCTION = """\
# Devices

Written by `tools/device_table.py` from the certificates in [certificates/](certificates), which
`engine certify --device NAME --json FILE` makes. Do not edit.

*yes*: the platform declares it, and every case of the conformance kit that needs it passed. *no*:
it does not declare it. *declared*: the kit has no case that passed for it. *in part*: what
was examined passed, and some levels were not. *untested*: that level was not looked at. *untested
on hardware*: nobody has certified such a device; there is no platform for it here, or none of
us has one.
"""

WITHOUT = """\
## Without the device: the platform's own code on a CPU

Certificates of stand-ins, which `tools/certify_without_device.py` makes: the platform's classes as
they are, but for what only the device can do. They say that the code keeps the contract; nothing of
the device, its compiler or its speed.
"""

#: By the stand-in's name: `of` which platform it is, and what it `replaces`.
StandIns = Mapping[str, Mapping[str, Any]]


def page(certificates: Sequence[dict[str, Any]], extras: Sequence[str], stand_ins: StandIns) -> str:
    """The whole file."""
    real = [one for one in certificates if one["platform"] not in stand_ins]
    certified = {one["platform"] for one in real}
    missing = [name for name in extras if name not in certified]
    lines = [INTRODUCTION, *_table(real, missing), ""]
    for one in real:
        lines += _details(one)
    if without := [one for one in certificates if one["platform"] in stand_ins]:
        lines += [WITHOUT, *_table(without), ""]
        for one in without:
            lines += _details(one, stand_ins[one["platform"]])
    return "\n".join(lines)


def _table(certificates: Sequence[dict[str, Any]], missing: Sequence[str] = ()) -> list[str]:
    names = [*(one["device"] for one in certificates), *missing]
    lines = [_row("", names), _row("---", ["---"] * len(names))]
    for number, (title, cells) in enumerate(_rows(certificates)):
        lines.append(_row(title, [*cells, *[UNTESTED if number else ON_HARDWARE] * len(missing)]))
    return lines


def _rows(certificates: Sequence[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    rows = [("**certified**", [_verdict(one) for one in certificates])]
    for dtype, pattern in DTYPES.items():
        cells = [
            _state(one, dtype in one["capabilities"]["dtypes"], pattern) for one in certificates
        ]
        rows.append((dtype, cells))
    for kv in sorted({kv for one in certificates for kv in one["capabilities"]["kv_dtypes"]}):
        cells = [
            _state(one, kv in one["capabilities"]["kv_dtypes"], f"attention/*/kv-{kv}*")
            for one in certificates
        ]
        rows.append((f"KV cache in {kv}", cells))
    for bits in sorted({q for one in certificates for q in one["capabilities"]["quantization"]}):
        cells = [
            _state(one, bits in one["capabilities"]["quantization"], f"ops/quantized-{bits}/*")
            for one in certificates
        ]
        rows.append((f"{bits} weights", cells))
    for title, (capability, pattern) in FEATURES.items():
        cells = [_state(one, one["capabilities"][capability], pattern) for one in certificates]
        rows.append((title, cells))
    rows.append(("tensor parallel", [_tensor_parallel(one) for one in certificates]))
    rows += [
        (f"level {level}", [_level(one, level) for one in certificates])
        for level in LEVELS
        if any(found["name"] == level for one in certificates for found in one["levels"])
    ]
    return rows


def _verdict(certificate: dict[str, Any]) -> str:
    examined = {one["name"] for one in certificate["levels"]}
    answer = "yes" if examined.issuperset(LEVELS[:-1]) else "in part"
    return f"{answer if certificate['passed'] else 'NO'}, {certificate['date']}"


def _state(certificate: dict[str, Any], declared: bool, pattern: str) -> str:
    if not declared:
        return "no"
    found = [one["status"] for one in certificate["cases"] if fnmatch(one["id"], pattern)]
    if "failed" in found or "known" in found:
        return "fails"
    return "yes" if "passed" in found else "declared"


def _tensor_parallel(certificate: dict[str, Any]) -> str:
    most = certificate["capabilities"]["world_size"]
    state = _state(certificate, most > 1, "ranks/tensor-parallel/*")
    return f"{state}, up to {most}" if most > 1 else state


def _level(certificate: dict[str, Any], level: str) -> str:
    """ "27 passed, 5 skipped"; nothing that is nought."""
    found = next((one for one in certificate["levels"] if one["name"] == level), None)
    if found is None:
        return UNTESTED
    counts = [(found[name], name) for name in ("passed", "failed", "known", "skipped")]
    return ", ".join(f"{count} {name}" for count, name in counts if count)


def _details(certificate: dict[str, Any], stand_in: Mapping[str, Any] | None = None) -> list[str]:
    contract = ".".join(map(str, certificate["contract"]["plugin"]))
    versions = ", ".join(
        f"{name} {version}" for name, version in certificate["versions"].items() if version
    )
    lines = [
        f"## {certificate['device']}",
        "",
        f"* {certificate['devices']}; {certificate['system']}",
        f"* contract {contract}; {versions}",
        f"* {certificate['seconds']:.0f} s for {len(certificate['cases'])} cases",
    ]
    if stand_in is not None:
        lines.insert(2, f"* the code of `{stand_in['of']}`: {stand_in['replaces']}")
    for one in certificate["cases"]:
        if one["level"] == "perf" and "values" in one:
            share = one["values"]["share"]
            name = one["id"].partition("/")[2].replace("-", " ")
            lines.append(f"* {name}: {share:.0%} of the rate of torch's own copy or product")
    for reason in sorted({one["reason"] for one in certificate["cases"] if _is_bad(one)}):
        lines.append(f"* {reason}")
    return [*lines, ""]


def _is_bad(case: dict[str, Any]) -> bool:
    return case["status"] in ("failed", "known")


def _row(title: str, cells: Sequence[str]) -> str:
    return f"| {' | '.join([title, *cells])} |"


def read_certificates(folder: Path) -> list[dict[str, Any]]:
    """All of them, by device.

    Raises:
        ValueError: one is of another format.
    """
    found = []
    for path in folder.glob("*.json"):
        certificate = json.loads(path.read_text(encoding="utf-8"))
        if certificate["format"] != FORMAT:
            raise ValueError(f"{path} has format {certificate['format']}; certify the device anew")
        found.append(certificate)
    return sorted(found, key=lambda one: str(one["device"]))


def read_stand_ins(path: Path) -> StandIns:
    return tomllib.loads(path.read_text(encoding="utf-8"))


def read_extras(pyproject: Path) -> list[str]:
    """Devices that may be installed for, in the order of pyproject.toml."""
    extras = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    return [name for name in extras["optional-dependencies"] if name not in NO_DEVICES]


def main() -> None:
    extras, stand_ins = read_extras(ROOT / "pyproject.toml"), read_stand_ins(STAND_INS)
    text = page(read_certificates(CERTIFICATES), extras, stand_ins)
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
