"""What the processor is, read from made-up file trees, and how many threads that means."""

import os
from pathlib import Path

import pytest

from engine_cpu.processor import Processor

XEON = """\
processor\t: 0
model name\t: Some Xeon @ 2.00GHz
flags\t\t: fpu avx2 avx512f avx512_vnni {}

processor\t: 1
model name\t: Other
flags\t\t: fpu
"""
ARM = "processor\t: 0\nFeatures\t: fp asimd {}\nCPU part\t: 0xd40\n"


@pytest.fixture
def four_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


@pytest.mark.parametrize(
    ("info", "flag", "native"),
    [
        (XEON, "", False),
        (XEON, "avx512_bf16", True),
        (XEON, "amx_bf16 amx_tile", True),
        (ARM, "", False),
        (ARM, "i8mm bf16", True),
    ],
)
def test_native_bfloat16_is_told_by_the_instruction_sets(
    tmp_path: Path, info: str, flag: str, native: bool
) -> None:
    write(tmp_path, "proc/cpuinfo", info.format(flag))
    assert Processor(tmp_path).native_bfloat16 is native


@pytest.mark.usefixtures("four_cpus")
def test_people_are_told_the_model_and_what_is_notable(tmp_path: Path) -> None:
    write(tmp_path, "proc/cpuinfo", XEON.format("amx_bf16"))
    expected = "4 x Some Xeon @ 2.00GHz, AMX-BF16, AVX512-VNNI, AVX512"
    assert Processor(tmp_path).describe() == expected


@pytest.mark.usefixtures("four_cpus")
def test_two_threads_of_one_core_are_one_core(tmp_path: Path) -> None:
    for cpu in range(4):
        folder = f"sys/devices/system/cpu/cpu{cpu}/topology"
        write(tmp_path, f"{folder}/physical_package_id", "0\n")
        write(tmp_path, f"{folder}/core_id", f"{cpu // 2}\n")
    assert Processor(tmp_path).cores == 2


@pytest.mark.usefixtures("four_cpus")
@pytest.mark.parametrize(
    ("quota", "cores"), [("20000", 1), ("140000", 1), ("150000", 2), ("900000", 4), ("max", 4)]
)
def test_a_quota_of_time_is_as_good_as_fewer_cores(tmp_path: Path, quota: str, cores: int) -> None:
    mount = "29 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw"
    write(tmp_path, "proc/self/mountinfo", mount)
    write(tmp_path, "proc/self/cgroup", "0::/")
    write(tmp_path, "sys/fs/cgroup/cpu.max", f"{quota} 100000")
    assert Processor(tmp_path).cores == cores


def test_without_any_file_something_is_still_said(tmp_path: Path) -> None:
    found = Processor(tmp_path)
    assert found.model
    assert found.cores >= 1
    assert found.describe().startswith(f"{found.cores} x ")
