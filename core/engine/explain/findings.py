"""What an explanation is made of. Plain data."""

from dataclasses import dataclass
from typing import Any

from engine.facts import ModelFacts


@dataclass(frozen=True, slots=True)
class Setting:
    """`value` is what the engine uses.

    `decided_by` is "default", "platform" (its preferred settings, or its choice by priority) or
    "user"; where that leaves the matter open, or asks for what cannot be, "capability" or "model";
    "loading" for what is known only then.
    """

    name: str
    value: Any
    decided_by: str
    why: str = ""


@dataclass(frozen=True, slots=True)
class Refusal:
    name: str
    why: str


@dataclass(frozen=True, slots=True)
class Part:
    """One choice: `kind` and `question` say between what, `times` how many layers asked."""

    kind: str  # "attention", "linear", "runner"
    question: str  # "linear of in_features 128, out_features 256"
    chosen: str | None  # None: nothing serves, and no engine could be made
    times: int = 1
    refused: tuple[Refusal, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    model: ModelFacts
    platform: str
    package: str
    device: str  # as torch spells it
    basis: str  # how the questions of layers came to be asked
    settings: tuple[Setting, ...]
    parts: tuple[Part, ...]

    @property
    def possible(self) -> bool:
        """Whether every part was found."""
        return all(part.chosen is not None for part in self.parts)
