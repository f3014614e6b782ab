"""Named operations: core brings a slow and obvious one, platforms bring better ones."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Implementation:
    source: str  # who brought it: "reference", or the platform's or plugin's name
    priority: int
    when: Callable[..., bool]
    function: Callable[..., Any]


class OpTable:
    """`chosen` remembers which implementation each question was answered with, for reports."""

    def __init__(self) -> None:
        self._implementations: dict[str, list[Implementation]] = {}
        self.chosen: dict[tuple[str, str], int] = {}  # (name, source): times chosen

    @property
    def names(self) -> list[str]:
        return sorted(self._implementations)

    def register(
        self,
        name: str,
        *,
        source: str,
        priority: int = 0,
        when: Callable[..., bool] = lambda **_: True,
    ) -> Callable[[F], F]:
        """Add an implementation. `when(**facts)` says whether it serves a layer's facts."""

        def add(function: F) -> F:
            found = self._implementations.setdefault(name, [])
            found.append(Implementation(source, priority, when, function))
            found.sort(key=lambda one: -one.priority)
            return function

        return add

    def choose(self, name: str, **facts: Any) -> Callable[..., Any]:
        """The best implementation for `facts`. Asked when a layer is built; never in a step."""
        for one in self._implementations.get(name, []):
            if one.when(**facts):
                key = (name, one.source)
                self.chosen[key] = self.chosen.get(key, 0) + 1
                return one.function
        raise LookupError(f"no implementation of {name!r} for {facts}; there are {self.names}")

    def reference(self, name: str) -> Callable[..., Any]:
        """The core's own implementation: the oracle of the others."""
        return next(
            one.function for one in self._implementations[name] if one.source == "reference"
        )
