"""Better launch parameters for one kernel: small steps from the table's, as long as they pay."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from engine_triton.architecture import Architecture, Launch

Entry = Mapping[str, Any]  # of the table: `at_most`, …, `blocks`, `options`

#: A step is taken if it saves as much of one task's time, or of several together.
WORTH = 0.02
#: … and makes no task slower by more.
HARM = 0.05
WARPS = (1, 2, 4, 8, 16)
STAGES = (1, 2, 3, 4, 5)
#: Options of a compiler that are not counted in powers of two, and what they may be.
CHOICES: Mapping[str, Sequence[int]] = {
    "num_warps": WARPS,
    "num_stages": STAGES,
    "waves_per_eu": (0, 1, 2, 3, 4),
    "matrix_instr_nonkdim": (0, 16, 32),
}


@dataclass(frozen=True)
class Watched(Architecture):
    """Notes which entries of one kernel's table were asked for."""

    watched: str = ""
    used: set[int] = field(default_factory=set, compare=False)

    @classmethod
    def of(cls, architecture: Architecture, kernel: str, entries: Sequence[Entry]) -> "Watched":
        """`architecture` with these entries for the kernel."""
        fields = {name: getattr(architecture, name) for name in Architecture.__dataclass_fields__}
        fields["kernels"] = {**architecture.kernels, kernel: list(entries)}
        return cls(**fields, watched=kernel)

    def launch(self, kernel: str, **facts: Any) -> Launch:
        found = super().launch(kernel, **facts)
        if kernel == self.watched:
            self.used.update(
                index
                for index, entry in enumerate(self.kernels[kernel])
                if entry.get("blocks", found.blocks) is found.blocks
                and entry.get("options", found.options) is found.options
            )
        return found


def apart(entries: Sequence[Entry]) -> list[Entry]:
    """Copies, of which no two share a part: they are told apart by identity."""
    return [
        {key: dict(value) if isinstance(value, Mapping) else value for key, value in entry.items()}
        for entry in entries
    ]


def neighbours(entry: Entry) -> Iterator[Entry]:
    """Entries that differ in one parameter, by one step."""
    for part in ("blocks", "options"):
        for name, value in entry.get(part, {}).items():
            for other in _steps(name, value):
                yield {**entry, part: {**entry[part], name: other}}


def _steps(name: str, value: Any) -> list[Any]:
    if isinstance(value, bool):
        return [not value]
    if not isinstance(value, int):
        return []
    if name in CHOICES:
        choices = CHOICES[name]
        if value not in choices:
            return list(choices)
        place = choices.index(value)
        return [*choices[max(0, place - 1) : place], *choices[place + 1 : place + 2]]
    return [value * 2, *([value // 2] if value > 1 else [])]


@dataclass
class Tuned:
    """What came out for one entry. Times in seconds, by task."""

    entry: Entry
    before: Mapping[str, float]
    after: Mapping[str, float]
    tried: int = 1
    refused: dict[str, int] = field(default_factory=dict)  # candidates, by reason

    @property
    def better(self) -> bool:
        return self.after != self.before


def tune(
    entry: Entry,
    measure: Callable[[Entry], Mapping[str, float] | str],
    go_on: Callable[[], bool] = lambda: True,
) -> Tuned:
    """Take the best step of all, again and again, until none pays or `go_on` says no.

    Args:
        measure: seconds of each task; or why the candidate cannot be used.

    Raises:
        RuntimeError: the table's own entry cannot be measured.
    """
    began = measure(entry)
    if isinstance(began, str):
        raise RuntimeError(f"the table's own parameters fail: {began}")
    found, seen = Tuned(entry, began, began), [_parameters(entry)]
    while go_on():
        best: tuple[float, Entry, Mapping[str, float]] | None = None
        for candidate in neighbours(found.entry):
            if _parameters(candidate) in seen or not go_on():
                continue
            seen.append(_parameters(candidate))
            found.tried += 1
            times = measure(candidate)
            if isinstance(times, str):
                found.refused[times] = found.refused.get(times, 0) + 1
                continue
            gain = saved(found.after, times)
            if gain > max(WORTH, best[0] if best else 0.0):
                best = gain, candidate, times
        if best is None:
            break
        found = replace(found, entry=best[1], after=best[2])
    return found


def saved(before: Mapping[str, float], after: Mapping[str, float]) -> float:
    """The sum of the tasks' logarithmic gains; nothing if one of them loses too much."""
    gains = [math.log(before[name] / after[name]) for name in before]
    return sum(gains) if min(gains) > -HARM else 0.0


def to_toml(kernel: str, entries: Sequence[Entry]) -> str:
    """The section for the architecture's table."""
    blocks = []
    for entry in entries:
        body = [f"{key} = {_toml(value)}" for key, value in entry.items()]
        blocks.append("\n".join([f"[[kernels.{kernel}]]", *body]))
    return "\n\n".join(blocks) + "\n"


def _parameters(entry: Entry) -> tuple[Any, Any]:
    return entry.get("blocks"), entry.get("options")


def _toml(value: Any) -> str:
    match value:
        case bool():
            return str(value).lower()
        case int():
            return str(value)
        case str():
            escaped = value.replace("\\", "\\\\").replace('"', '\\"')
            return f'"{escaped}"'
        case Mapping():
            inner = ", ".join(f"{name} = {_toml(one)}" for name, one in value.items())
            return f"{{ {inner} }}"
        case _:
            return f"[{', '.join(map(_toml, value))}]"
