"""Where a platform's spec comes from, so that another process can make it anew. Without torch."""

import importlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass

from engine.errors import PluginError
from engine.platform import PlatformSpec


@dataclass(frozen=True, slots=True)
class Origin:
    """A module with the hook `engine_platforms`, and the platform's name there. It pickles."""

    module: str
    name: str

    @classmethod
    def of(cls, spec: PlatformSpec) -> "Origin":
        """The nearest package of the spec's own functions that offers this very spec.

        Raises:
            PluginError: there is none.
        """
        for module in _modules(spec):
            origin = cls(module, spec.name)
            if _offers(module, spec):
                return origin
        raise PluginError(
            f"no function engine_platforms of the package that has {spec.name!r}'s probe and create"
            " offers this platform, so no other process can make it"
        )

    def spec(self) -> PlatformSpec:
        [found] = [one for one in _platforms(self.module) if one.name == self.name]
        return found


def _modules(spec: PlatformSpec) -> Iterator[str]:
    """Of `create` and `probe`, and the packages around them."""
    for part in (spec.create, spec.probe):
        module = inspect.getmodule(part)
        name = module.__name__ if module is not None else ""
        while name:
            yield name
            name = name.rpartition(".")[0]


def _offers(module: str, spec: PlatformSpec) -> bool:
    return any(
        (one.name, one.create, one.probe) == (spec.name, spec.create, spec.probe)
        for one in _platforms(module)
    )


def _platforms(module: str) -> list[PlatformSpec]:
    offer = vars(importlib.import_module(module)).get("engine_platforms")
    return [] if offer is None else list(offer())
