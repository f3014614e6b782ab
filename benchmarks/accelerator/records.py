"""What is measured and checked, as plain data that crosses processes, and the table of it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from rich.markup import escape
from rich.table import Table

OURS = "ours"


@dataclass(frozen=True)
class Fact:
    """What is worth knowing beside the numbers."""

    name: str
    value: str | float


@dataclass(frozen=True)
class Check:
    """Whether something is right. `detail` says how far off it is, and how far it may be."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Value:
    """One measure of one participant. Values of one name are compared with each other."""

    name: str
    who: str  # OURS, or an anchor's name
    value: float
    unit: str
    higher_is_better: bool = False
    floor: float | None = None  # the best possible, in the same unit


Record = Fact | Check | Value
_KINDS: Mapping[str, type[Record]] = {"fact": Fact, "check": Check, "value": Value}


def to_json(record: Record) -> dict[str, object]:
    kind = next(name for name, cls in _KINDS.items() if isinstance(record, cls))
    return {"kind": kind, **asdict(record)}


def from_json(fields: Mapping[str, object]) -> Record:
    """The inverse of `to_json`."""
    rest = {name: value for name, value in fields.items() if name != "kind"}
    return _KINDS[str(fields["kind"])](**rest)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Line:
    """Ours beside one anchor, or one of them alone. A ratio over 1 means that ours is better."""

    name: str
    unit: str
    ours: float | None
    anchor: str | None = None
    theirs: float | None = None
    ratio: float | None = None
    of_floor: float | None = None  # share of the best possible that ours reaches


def lines(values: Iterable[Value]) -> list[Line]:
    """One line for every anchor of a name; one for ours alone where there is none."""
    by_name: dict[str, list[Value]] = {}
    for value in values:
        by_name.setdefault(value.name, []).append(value)
    found = []
    for name, group in by_name.items():
        ours = next((one for one in group if one.who == OURS), None)
        anchors: list[Value | None] = [one for one in group if one.who != OURS]
        found += [_line(name, ours, anchor) for anchor in anchors or [None]]
    return found


def _line(name: str, ours: Value | None, anchor: Value | None) -> Line:
    some = ours or anchor
    assert some is not None
    return Line(
        name=name,
        unit=some.unit,
        ours=ours.value if ours else None,
        anchor=anchor.who if anchor else None,
        theirs=anchor.value if anchor else None,
        ratio=_better(ours.value, anchor.value, ours.higher_is_better) if ours and anchor else None,
        of_floor=_better(ours.value, ours.floor, ours.higher_is_better)
        if ours and ours.floor
        else None,
    )


def _better(ours: float, other: float, higher_is_better: bool) -> float | None:
    """How many times better ours is."""
    if not ours or not other:
        return None
    return ours / other if higher_is_better else other / ours


def table(found: Sequence[Line]) -> Table:
    """`name | ours | anchor | ratio | % of floor`"""
    shown = Table("name", box=None)
    for heading in ("ours", "anchor", "ratio", "% of floor"):
        shown.add_column(heading, justify="left" if heading == "anchor" else "right")
    for line in found:
        theirs = f"{line.theirs:,.4g} {line.anchor}" if line.theirs is not None else ""
        shown.add_row(
            escape(f"{line.name}, {line.unit}" if line.unit else line.name),
            "not run" if line.ours is None else f"{line.ours:,.4g}",
            escape(theirs),
            "" if line.ratio is None else f"{line.ratio:.2f}",
            "" if line.of_floor is None else f"{line.of_floor:.0%}".rstrip("%"),
        )
    return shown
