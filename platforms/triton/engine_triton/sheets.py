"""What chips can do, from their makers' data sheets, and the settings that suit them.

A platform's `sheets.toml` has one table a chip:

    [assumed]                  # where nobody measured: fields of `DeviceProfile`
    [chips.h200]
    named = ["H200"]           # words of the name that the driver gives the chip; all must be there
    memory_gb = 141            # decimal units, dense rates, one direction of a link
    bandwidth_tb_s = 4.8
    tflops = { bfloat16 = 989.4 }
    link_gb_s = 450
    watts = 700
    source = "…"
    defaults = { max_requests = 512 }   # settings of the engine
"""

import re
import tomllib
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from engine.platform import DeviceProfile


class Sheets:
    """Those of one package: its file `sheets.toml`."""

    def __init__(self, package: str) -> None:
        table = tomllib.loads(files(package).joinpath("sheets.toml").read_text(encoding="utf-8"))
        self._assumed: Mapping[str, Any] = table["assumed"]
        self._chips: Mapping[str, Mapping[str, Any]] = table["chips"]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._chips)

    def name_of(self, model: str) -> str | None:
        """The sheet for a chip that the driver calls `model`; the first that fits."""
        words = re.findall(r"[a-z0-9]+", model.lower())
        for name, sheet in self._chips.items():
            if all(word.lower() in words for word in sheet["named"]):
                return name
        return None

    def defaults(self, model: str) -> Mapping[str, Any]:
        """Settings for that chip; none for one without a sheet."""
        name = self.name_of(model)
        return {} if name is None else dict(self._chips[name].get("defaults", {}))

    def profile(self, name: str) -> DeviceProfile:
        """
        Raises:
            KeyError: there is no sheet of that name.
        """
        sheet = self._chips[name]
        rest = {key: sheet.get(key, value) for key, value in self._assumed.items()}
        guessed = ", ".join(
            f"{key} {value:g}" for key, value in self._assumed.items() if key not in sheet
        )
        return DeviceProfile(
            name=name,
            memory_bytes=round(sheet["memory_gb"] * 1e9),
            bandwidth=sheet["bandwidth_tb_s"] * 1e12,
            flops={dtype: tflops * 1e12 for dtype, tflops in sheet["tflops"].items()},
            link_bandwidth=sheet["link_gb_s"] * 1e9,
            watts=sheet["watts"],
            source=f"{sheet['source']}; assumed: {guessed}",
            **rest,
        )
