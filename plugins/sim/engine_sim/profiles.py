"""Data sheets of devices, by name: `profile("h200")`. The data is in profiles.toml."""

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from engine.platform.profile import DeviceProfile

_ASSUMED = "assumed"


def names() -> tuple[str, ...]:
    """Every device that has a data sheet here."""
    return tuple(sorted(_sheets().keys() - {_ASSUMED}))


def profile(name: str) -> DeviceProfile:
    """The device of that name.

    Raises:
        ValueError: there is none; tells which there are.
    """
    if name not in names():
        raise ValueError(f"there is no data sheet of {name!r}; there are {', '.join(names())}")
    sheet, assumed = _sheets()[name], _sheets()[_ASSUMED]
    rest = {key: sheet.get(key, value) for key, value in assumed.items()}
    return DeviceProfile(
        name=name,
        memory_bytes=round(sheet["memory_gb"] * 1e9),
        bandwidth=sheet["bandwidth_tb_s"] * 1e12,
        flops={dtype: tflops * 1e12 for dtype, tflops in sheet["tflops"].items()},
        link_bandwidth=sheet["link_gb_s"] * 1e9,
        watts=sheet.get("watts"),
        source=_source(sheet, assumed),
        **rest,
    )


@cache
def _sheets() -> Mapping[str, Mapping[str, Any]]:
    text = files(__package__).joinpath("profiles.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def _source(sheet: Mapping[str, Any], assumed: Mapping[str, Any]) -> str:
    guessed = ", ".join(f"{key} {assumed[key]:g}" for key in assumed if key not in sheet)
    parts = [sheet["source"], sheet.get("reached_source"), f"assumed: {guessed}"]
    return "; ".join(part for part in parts if part)
