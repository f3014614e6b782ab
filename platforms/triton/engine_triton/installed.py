"""What is installed here, told from files alone: nothing opens a driver or imports torch."""

import ast
from collections.abc import Mapping, Sequence
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path


def torch_build(folders: Sequence[str] | None = None) -> Mapping[str, str | None] | None:
    """What torch says of itself in its `version.py`: "__version__", and for each vendor's toolkit
    that it may be built for, its version or None. None: torch is not installed.

    `folders` are searched in place of `sys.path`.
    """
    found = find_spec("torch") if folders is None else PathFinder.find_spec("torch", list(folders))
    if found is None or found.origin is None:
        return None
    try:
        tree = ast.parse((Path(found.origin).parent / "version.py").read_text(encoding="utf-8"))
    except (OSError, SyntaxError):
        return {"__version__": None}
    stated: dict[str, str | None] = {"__version__": None}
    for node in tree.body:
        match node:
            case (
                ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=value))
                | ast.AnnAssign(target=ast.Name(id=name), value=ast.Constant(value=value))
            ) if value is None or isinstance(value, str):
                stated[name] = value
    return stated


def visible(variable: str | None, identities: Sequence[Sequence[str]]) -> tuple[int, ...]:
    """Which devices a variable such as `…_VISIBLE_DEVICES` leaves, in its order.

    Args:
        variable: its text; None where it is not set.
        identities: of each device, the names by which it may be called beside its index. The
            beginning of one that fits no other device is enough.

    As the runtimes do, the list ends at the first entry that names no device.
    """
    if variable is None:
        return tuple(range(len(identities)))
    chosen: list[int] = []
    for entry in variable.split(","):
        found = _named(entry.strip(), identities)
        if found is None or found in chosen:
            break
        chosen.append(found)
    return tuple(chosen)


def _named(entry: str, identities: Sequence[Sequence[str]]) -> int | None:
    if entry.isdecimal():
        return int(entry) if int(entry) < len(identities) else None
    found = [
        place
        for place, names in enumerate(identities)
        if entry and any(name.startswith(entry) for name in names)
    ]
    return found[0] if len(found) == 1 else None


def counted(names: Sequence[str]) -> str:
    """["A", "A", "B"] -> "2 x A, B"."""
    times = {name: names.count(name) for name in names}
    return ", ".join(name if count == 1 else f"{count} x {name}" for name, count in times.items())
