"""Named operations: core brings a slow and obvious one, platforms bring better ones."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from engine.errors import UnsupportedError

F = TypeVar("F", bound=Callable[..., Any])

#: Why an implementation was refused that was not even asked: a better one serves.
LOWER_PRIORITY = "lower priority"


class MissingOperationError(UnsupportedError, LookupError):
    """No implementation serves a layer."""


@dataclass(frozen=True, slots=True)
class Implementation:
    source: str  # who brought it: "reference", or the platform's or plugin's name
    priority: int
    when: Callable[..., bool]
    unless: Callable[..., str | None]
    function: Callable[..., Any]

    def refuses(self, facts: Mapping[str, Any]) -> str | None:
        """Why it does not serve a layer of these facts, or None where it does."""
        if not self.when(**facts):
            return "its condition does not hold"
        return self.unless(**facts)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the table answered to one question. Equal questions have equal answers."""

    name: str
    facts: tuple[tuple[str, Any], ...]  # by name
    source: str  # of the implementation that was chosen
    refused: tuple[tuple[str, str], ...]  # (source, why) of every other one, best first


class OpTable:
    """`chosen` and `answers` remember what was asked and answered, for reports."""

    def __init__(self) -> None:
        self._implementations: dict[str, list[Implementation]] = {}
        self.chosen: dict[tuple[str, str], int] = {}  # (name, source): times chosen
        self.answers: dict[Answer, int] = {}  # times given, in the order of the first

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
        unless: Callable[..., str | None] = lambda **_: None,
    ) -> Callable[[F], F]:
        """Add an implementation.

        Args:
            when: `when(**facts)`: whether it serves a layer's facts.
            unless: `unless(**facts)`: why it does not, or None. Say it this way, if people should
                read the reason.
        """

        def add(function: F) -> F:
            found = self._implementations.setdefault(name, [])
            found.append(Implementation(source, priority, when, unless, function))
            found.sort(key=lambda one: -one.priority)
            return function

        return add

    def choose(self, name: str, **facts: Any) -> Callable[..., Any]:
        """The best implementation for `facts`. Asked when a layer is built; never in a step.

        Raises:
            MissingOperationError: there is none; says why not, one by one.
        """
        candidates = self._implementations.get(name, [])
        refused: list[tuple[str, str]] = []
        for place, one in enumerate(candidates):
            if why := one.refuses(facts):
                refused.append((one.source, why))
                continue
            refused += [(other.source, LOWER_PRIORITY) for other in candidates[place + 1 :]]
            answer = Answer(name, tuple(sorted(facts.items())), one.source, tuple(refused))
            self._note(answer)
            return one.function
        reasons = "; ".join(f"{source}: {why}" for source, why in refused)
        raise MissingOperationError(
            f"no implementation of {name!r} for {facts}; "
            + (f"refused: {reasons}" if refused else f"there are {self.names}")
        )

    def reference(self, name: str) -> Callable[..., Any]:
        """The core's own implementation: the oracle of the others."""
        return next(
            one.function for one in self._implementations[name] if one.source == "reference"
        )

    def _note(self, answer: Answer) -> None:
        key = (answer.name, answer.source)
        self.chosen[key] = self.chosen.get(key, 0) + 1
        self.answers[answer] = self.answers.get(answer, 0) + 1
