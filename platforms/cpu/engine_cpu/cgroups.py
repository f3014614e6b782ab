"""The limits that control groups set for this process: what a container was given.

Both versions of the interface are read, also mixed: version 2 has one tree for all controllers,
version 1 one for each. A limit of any group on the way to the top counts.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

#: From here on a version 1 limit is the kernel's way to say "none".
NO_LIMIT = 2**60


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """Bytes. `used` leaves out what the kernel takes back as soon as somebody needs it."""

    limit: int
    used: int

    @property
    def free(self) -> int:
        return max(0, self.limit - self.used)


class Cgroups:
    """`root` stands for / in tests."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def memory_limits(self) -> list[MemoryLimit]:
        """Of each group that has one, innermost first."""
        found = [_memory_2(folder) for folder in self._groups("")]
        found += [_memory_1(folder) for folder in self._groups("memory")]
        return [one for one in found if one is not None]

    def cpu_quota(self) -> float | None:
        """Cores' worth of time; None where nothing limits it."""
        found = [_quota_2(folder) for folder in self._groups("")]
        found += [_quota_1(folder) for folder in self._groups("cpu")]
        return min((one for one in found if one is not None), default=None)

    def _groups(self, controller: str) -> Iterator[Path]:
        """Folders of the groups this process is in, innermost first; "" means version 2."""
        own = self._own_path(controller)
        mount = self._mount(controller)
        if own is None or mount is None:
            return
        shown_from, where = mount
        top = self._root / where.lstrip("/")
        # Inside a container the tree may begin at the container's own group.
        inner = own.removeprefix(shown_from.rstrip("/")) if own.startswith(shown_from) else ""
        folder = top / inner.strip("/")
        while folder != top:
            if folder.is_dir():
                yield folder
            folder = folder.parent
        yield top

    def _own_path(self, controller: str) -> str | None:
        """From lines like "4:memory:/user/7" and "0::/user/7"."""
        for line in _lines(self._root / "proc/self/cgroup"):
            _, controllers, path = line.split(":", 2)
            if controller in controllers.split(","):
                # A path that leaves the visible tree says nothing about it.
                return "/" if path.startswith("/..") else path
        return None

    def _mount(self, controller: str) -> tuple[str, str] | None:
        """Which group the tree begins at, and where it is mounted.

        From lines like "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory".
        """
        for line in _lines(self._root / "proc/self/mountinfo"):
            before, _, after = line.partition(" - ")
            kind, _, options = after.split(" ", 2)
            begins_at, where = before.split(" ")[3:5]
            if kind == "cgroup2" and not controller:
                return begins_at, where
            if kind == "cgroup" and controller in options.split(","):
                return begins_at, where
        return None


def _memory_2(folder: Path) -> MemoryLimit | None:
    limits = [_number(folder / name) for name in ("memory.max", "memory.high")]
    found = [limit for limit in limits if limit is not None]
    used = _number(folder / "memory.current")
    if not found or used is None:
        return None
    statistics = _table(folder / "memory.stat")
    names = ("inactive_file", "active_file", "slab_reclaimable")
    reclaimable = sum(statistics.get(name, 0) for name in names)
    return MemoryLimit(min(found), max(0, used - reclaimable))


def _memory_1(folder: Path) -> MemoryLimit | None:
    limit = _number(folder / "memory.limit_in_bytes")
    used = _number(folder / "memory.usage_in_bytes")
    if limit is None or limit >= NO_LIMIT or used is None:
        return None
    statistics = _table(folder / "memory.stat")
    reclaimable = sum(statistics.get(f"total_{kind}_file", 0) for kind in ("inactive", "active"))
    return MemoryLimit(limit, max(0, used - reclaimable))


def _quota_2(folder: Path) -> float | None:
    """From "150000 100000": microseconds of time in each period of so many."""
    for line in _lines(folder / "cpu.max"):
        quota, _, period = line.partition(" ")
        if quota.isdecimal() and period.isdecimal() and int(period):
            return int(quota) / int(period)
    return None


def _quota_1(folder: Path) -> float | None:
    quota = _number(folder / "cpu.cfs_quota_us")
    period = _number(folder / "cpu.cfs_period_us")
    return quota / period if quota is not None and period else None


def _number(path: Path) -> int | None:
    """A file's only number; None for "max", for -1 and where there is no such file."""
    for line in _lines(path):
        return int(line) if line.isdecimal() else None
    return None


def _table(path: Path) -> dict[str, int]:
    rows = (line.split() for line in _lines(path))
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdecimal()}


def _lines(path: Path) -> list[str]:
    """Empty where the file does not exist or may not be read."""
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
