"""Architectures: facts of each family of chips, and the launch parameters of every kernel on it.

`architectures/NAME.toml` is one family's table:

    like = "sm_80"                      # facts and kernels that are not here are looked up there

    [facts]                             # the fields of `Architecture` below
    shared_memory = 232448

    [relatives.sm_89]                   # a chip of the family, and the facts that differ on it
    shared_memory = 101376

    [[kernels.paged_decode]]            # the first entry that fits is taken; the last fits always
    at_most = { head_dim = 128 }        # facts of the call, and those above, that it is for:
    at_least = { rows = 16 }            # `at_most` and `at_least` (both inclusive) for numbers,
    is = { dtype = ["bfloat16"] }       # `is` for one of some values
    blocks = { BLOCK_N = 64 }           # constants of the kernel
    options = { num_warps = 4 }         # of Triton's compiler for this target
    tuned = "..."                       # the command and chip that found them, if any did

An entry without `tuned` was chosen by reading what the compiler makes of it, not by measuring.
"""

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Self

from engine.errors import UnsupportedError

TABLES = Path(__file__).parent / "architectures"

#: Kernels run by Triton's interpreter, on tensors of the host.
INTERPRETER = "interpreter"

_ENTRY_KEYS = {"at_most", "at_least", "is", "blocks", "options", "tuned"}


@dataclass(frozen=True, slots=True)
class Launch:
    """How one kernel is launched: `kernel[grid](..., **launch.blocks, **launch.options)`."""

    blocks: Mapping[str, Any]  # constexpr arguments
    options: Mapping[str, Any]  # num_warps, num_stages, ...: the compiler's
    tuned: str | None = None  # what found them on hardware; None: untuned


@dataclass(frozen=True, slots=True)
class Architecture:
    """What kernels and their host code may know of a chip."""

    name: str  # of the table: "sm_90", "gfx942", "interpreter"
    chip: str  # as asked for: "sm_89" has the table "sm_80"
    backend: str  # Triton's compiler for it
    warp_size: int  # lanes
    shared_memory: int  # bytes that one block may use
    processors: int  # blocks run on so many at once
    fp8: str | None = None  # format of its conversions and matrix units: "e4m3", "e4m3fnuz"
    fp8_matrix: bool = False  # has a matrix instruction on fp8
    dependent_launch: bool = False  # a kernel may start before the one before it ends
    kernels: Mapping[str, Sequence[Mapping[str, Any]]] = field(
        default_factory=dict, repr=False, compare=False
    )
    assembly: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def named(cls, name: str) -> Self:
        """The chip of that name, with the table of its family.

        Raises:
            UnsupportedError: no family is near; says which there are.
        """
        family = _family(name)
        table = _merged(family)
        facts = table["facts"] | table["relatives"].get(_relative(name, table) or "", {})
        return cls(
            name=family,
            chip=name,
            kernels=table["kernels"],
            assembly=table.get("assembly", {}),
            **facts,
        )

    @classmethod
    def current(cls) -> Self:
        """The chip that Triton's active driver launches on; or the interpreter, if that is on.

        Raises:
            UnsupportedError: its family is not known.
        """
        from triton import knobs
        from triton.runtime import driver

        if knobs.runtime.interpret:
            return cls.named(INTERPRETER)
        active = driver.active
        found = active.get_current_target().arch
        name = f"sm_{found}" if isinstance(found, int) else str(found).partition(":")[0]
        properties = active.utils.get_device_properties(active.get_current_device())
        return replace(
            cls.named(name),
            shared_memory=properties["max_shared_mem"],
            processors=properties["multiprocessor_count"],
        )

    @property
    def interpreted(self) -> bool:
        return self.name == INTERPRETER

    @property
    def note(self) -> str | None:
        """What a person should read who asked for this chip."""
        if self.chip == self.name:
            return None
        return f"{self.chip} has no launch parameters of its own: those of {self.name} are used"

    def launch(self, kernel: str, **facts: Any) -> Launch:
        """Of the first entry in the kernel's table that fits `facts` and the architecture's own.

        Raises:
            LookupError: no entry fits: a mistake in the table.
        """
        asked = {"shared_memory": self.shared_memory, "chip": self.chip, **facts}
        for entry in self.kernels.get(kernel, ()):
            if _fits(entry, asked):
                return Launch(entry.get("blocks", {}), entry.get("options", {}), entry.get("tuned"))
        raise LookupError(
            f"the table of {self.name} has no entry for kernel {kernel!r} with {asked};"
            f" it has the kernels {sorted(self.kernels)}"
        )


def known() -> tuple[str, ...]:
    """Names of the families that have a table."""
    return tuple(sorted(path.stem for path in TABLES.glob("*.toml")))


def _fits(entry: Mapping[str, Any], facts: Mapping[str, Any]) -> bool:
    return (
        all(facts[name] <= most for name, most in entry.get("at_most", {}).items())
        and all(facts[name] >= least for name, least in entry.get("at_least", {}).items())
        and all(facts[name] in values for name, values in entry.get("is", {}).items())
    )


def _family(name: str) -> str:
    """The table for a chip: its own, one that lists it, or that of the next older `sm_`."""
    if name in known():
        return name
    listed = {relative: one for one in known() for relative in _read(one)["relatives"]}
    if name in listed:
        return listed[name]
    if (number := _number(name)) is not None:
        chips = {_number(one): one for one in known()} | {_number(r): f for r, f in listed.items()}
        older = [one for one in chips if one is not None and one < number]
        if older:
            return chips[max(older)]
    families = [one for one in known() if one != INTERPRETER]
    raise UnsupportedError(
        f"there are no launch parameters for {name}: it is older than, or unlike, {families};"
        f" add {TABLES / name}.toml beside those"
    )


def _relative(name: str, table: Mapping[str, Any]) -> str | None:
    """The entry of `relatives` for a chip: its own, or the next older one's."""
    relatives = table["relatives"]
    if name in relatives or (number := _number(name)) is None:
        return name
    older = [one for one in relatives if (_number(one) or number) < number]
    newest = max(older, key=lambda one: _number(one) or 0, default=None)
    return newest if name not in known() else None


def _number(name: str) -> int | None:
    """89 of "sm_89", which orders by age; other names do not."""
    match = re.fullmatch(r"sm_(\d+)", name)
    return int(match[1]) if match else None


@cache
def _merged(name: str) -> dict[str, Any]:
    """A table with what it takes over from the one that it is like; relatives are its own."""
    table = _read(name)
    if "like" not in table:
        return table
    base = _merged(table["like"])
    return {
        "facts": base["facts"] | table["facts"],
        "relatives": table["relatives"],
        "kernels": base["kernels"] | table["kernels"],
        "assembly": base["assembly"] | table["assembly"],
    }


@cache
def _read(name: str) -> dict[str, Any]:
    """One file.

    Raises:
        ValueError: a kernel's entry has a key that nothing reads.
    """
    table = tomllib.loads((TABLES / f"{name}.toml").read_text(encoding="utf-8"))
    for kernel, entries in table.get("kernels", {}).items():
        for entry in entries:
            if unknown := set(entry) - _ENTRY_KEYS:
                raise ValueError(f"{name}.toml, {kernel}: unknown {sorted(unknown)}")
    return {"facts": {}, "relatives": {}, "kernels": {}, "assembly": {}} | table
