"""Memory of this very process, and of made-up machines."""

import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from engine_cpu.memory import HostMemory, KernelPeak, SampledPeak

MIB = 2**20


def machine(monkeypatch: pytest.MonkeyPatch, total: int, available: int) -> None:
    numbers = SimpleNamespace(total=total, available=available)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: numbers)


def limit(root: Path, limit: int, used: int) -> None:
    files = {
        "proc/self/mountinfo": "29 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw",
        "proc/self/cgroup": "0::/",
        "sys/fs/cgroup/memory.max": str(limit),
        "sys/fs/cgroup/memory.current": str(used),
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def test_the_machine_limits_where_nothing_else_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, 64000 * MIB, 50000 * MIB)
    now = HostMemory(tmp_path).snapshot()
    assert (now.total, now.free) == (64000 * MIB, 50000 * MIB)
    assert now.used == pytest.approx(psutil.Process().memory_info().rss, rel=0.2)


def test_a_container_has_no_more_than_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, 64000 * MIB, 50000 * MIB)
    limit(tmp_path, 8000 * MIB, 3000 * MIB)
    now = HostMemory(tmp_path).snapshot()
    assert (now.total, now.free) == (8000 * MIB, 5000 * MIB)


def test_a_busy_machine_may_have_less_than_the_container_was_promised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, 64000 * MIB, 1000 * MIB)
    limit(tmp_path, 8000 * MIB, 3000 * MIB)
    now = HostMemory(tmp_path).snapshot()
    assert (now.total, now.free) == (8000 * MIB, 1000 * MIB)


@pytest.mark.skipif(not psutil.LINUX, reason="only Linux tells the limit of another process")
def test_a_limited_address_space_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 2**50, 2**50)
    memory = HostMemory(tmp_path)
    taken = psutil.Process().memory_info().vms
    monkeypatch.setattr(psutil.Process, "rlimit", lambda self, which: (taken + 900 * MIB, -1))
    now = memory.snapshot()
    assert now.total == taken + 900 * MIB
    assert now.free == pytest.approx(900 * MIB, abs=100 * MIB)


def test_the_kernels_peak_is_read_and_forgotten(tmp_path: Path) -> None:
    (tmp_path / "status").write_text("Name:\tpython\nVmHWM:\t   2048 kB\nVmRSS:\t 1024 kB\n")
    (tmp_path / "clear_refs").touch()
    peak = KernelPeak(tmp_path)
    assert peak.works()
    assert peak.read() == 2 * MIB
    (tmp_path / "clear_refs").write_text("")
    with peak.since_now():
        assert (tmp_path / "clear_refs").read_text() == "5"


@pytest.mark.parametrize("files", [[], ["status"]])
def test_without_the_kernels_help_the_resident_set_is_watched(
    tmp_path: Path, files: list[str]
) -> None:
    """As on macOS, and in sandboxes that have /proc but not all of it."""
    for name in files:
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self" / name).write_text("VmHWM:\t 2048 kB\n")
    (tmp_path / "proc/self/clear_refs").mkdir(parents=True)  # cannot be written
    memory = HostMemory(tmp_path)
    used = memory.snapshot().used
    with memory.measure():
        held = torch.ones(256 * MIB, dtype=torch.uint8)
        time.sleep(0.2)  # a sampler may miss shorter peaks, that is its weakness
        del held
        memory.release_cached()
        rise = memory.snapshot().peak - used
    assert 200 * MIB < rise < 400 * MIB


def test_a_sampled_peak_counts_from_the_start_of_its_block() -> None:
    peak = SampledPeak(psutil.Process())
    peak._most = 2**60
    with peak.since_now():
        assert peak.read() < 2**60


def test_a_peak_that_is_over_is_still_known() -> None:
    memory = HostMemory()
    used = memory.snapshot().used
    with memory.measure():
        torch.ones(256 * MIB, dtype=torch.uint8)
        memory.release_cached()
        now = memory.snapshot()
    assert 240 * MIB < now.peak - used < 300 * MIB
    assert now.used - used < 50 * MIB


def test_memory_that_is_only_kept_for_reuse_is_given_back() -> None:
    memory = HostMemory()
    before = memory.snapshot().used
    small = [torch.ones(16384) for _ in range(2000)]  # 64 KiB each: from the heap, 125 MiB in all
    keep = small[::100]
    held = memory.snapshot().used - before
    del small
    memory.release_cached()
    assert held > 100 * MIB
    assert memory.snapshot().used - before < 30 * MIB
    assert len(keep) == 20


def test_ranks_share_the_machine_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 64000 * MIB, 50000 * MIB)
    now = HostMemory(tmp_path, ranks=4).snapshot()
    assert (now.total, now.free) == (16000 * MIB, 12500 * MIB)
    assert now.used == pytest.approx(psutil.Process().memory_info().rss, rel=0.2)  # its own alone
