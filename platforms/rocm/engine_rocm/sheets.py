"""Data sheets of the GPUs that are here: `sheets.toml`."""

from collections.abc import Mapping, Sequence
from typing import Any

from engine.platform import DeviceProfile
from engine_triton.sheets import Sheets


def defaults(models: Sequence[str]) -> Mapping[str, Any]:
    """Settings for the first of these GPUs, by its model's name. A step overlaps the host's work
    with the device's."""
    found = Sheets(__package__).defaults(models[0]) if models else {}
    return {"overlap": True, **found}


def profile(models: Sequence[str]) -> DeviceProfile | None:
    """Of the first of these GPUs; None for one without a data sheet."""
    sheets = Sheets(__package__)
    name = sheets.name_of(models[0]) if models else None
    return None if name is None else sheets.profile(name)
