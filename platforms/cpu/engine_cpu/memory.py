"""How much memory this process may use, and how much a piece of work needs.

|--------------------- total: the least of machine, container, address space ---------------------|
|-- others: not free, not ours --|-- used: our resident set --|------------ free -----------------|
"""

import ctypes
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from engine.platform import MemoryProfiler, MemorySnapshot
from engine_cpu.cgroups import Cgroups

#: Between two looks at the resident set, where the kernel does not remember the peak.
SAMPLE_S = 0.001


class HostMemory(MemoryProfiler):
    """`root` stands for / in tests; the machine's own numbers come from psutil.

    `ranks` share it all alike: each sees a machine of that part of the memory, free or not.
    """

    kind = "measured"

    def __init__(self, root: Path = Path("/"), ranks: int = 1) -> None:
        self._ranks = ranks
        self._cgroups = Cgroups(root)
        self._process = psutil.Process()
        self._peak: KernelPeak | SampledPeak = KernelPeak(root / "proc/self")
        if not self._peak.works():
            self._peak = SampledPeak(self._process)

    def snapshot(self) -> MemorySnapshot:
        machine = psutil.virtual_memory()
        info = self._process.memory_info()
        totals, frees = [machine.total], [machine.available]
        for one in self._cgroups.memory_limits():
            totals.append(one.limit)
            frees.append(one.free)
        address_space = _address_space_limit(self._process)
        if address_space is not None:
            totals.append(address_space)
            frees.append(address_space - info.vms)
        total = min(totals) // self._ranks
        used = min(info.rss, total)
        free = min(max(0, min(frees)) // self._ranks, total)
        return MemorySnapshot(total, free, used, max(used, self._peak.read()))

    @contextmanager
    def measure(self) -> Iterator[None]:
        with self._peak.since_now():
            yield

    def release_cached(self) -> None:
        """glibc keeps what was freed; other C libraries return it by themselves."""
        if platform.libc_ver()[0] == "glibc":
            ctypes.CDLL(None).malloc_trim(0)


class KernelPeak:
    """Linux remembers the most that was resident, and forgets it when told to."""

    def __init__(self, folder: Path) -> None:
        self._status = folder / "status"
        self._forget = folder / "clear_refs"

    def works(self) -> bool:
        """Whether the peak can be read, and does go back: some sandboxes only pretend."""
        if not self.read():
            return False
        try:
            self._reset()
        except OSError:
            return False
        return True

    def read(self) -> int:
        """Bytes; 0 where the kernel does not tell."""
        try:
            text = self._status.read_text()
        except OSError:
            return 0
        for line in text.splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        return 0

    @contextmanager
    def since_now(self) -> Iterator[None]:
        self._reset()
        yield

    def _reset(self) -> None:
        self._forget.write_text("5")  # proc(5): "reset the peak resident set size"


class SampledPeak:
    """Looks at the resident set again and again: short peaks may be missed."""

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self._most = 0

    def read(self) -> int:
        self._most = max(self._most, self._process.memory_info().rss)
        return self._most

    @contextmanager
    def since_now(self) -> Iterator[None]:
        self._most = 0
        stop = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(stop,), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            stop.set()
            watcher.join()

    def _watch(self, stop: threading.Event) -> None:
        while not stop.wait(SAMPLE_S):
            self.read()


def _address_space_limit(process: psutil.Process) -> int | None:
    """Bytes, as set by `ulimit -v`; systems other than Linux do not tell."""
    if not psutil.LINUX:
        return None
    soft, _ = process.rlimit(psutil.RLIMIT_AS)
    return None if soft == psutil.RLIM_INFINITY else soft
