"""Limits of containers, read from made-up file trees."""

from pathlib import Path

import pytest

from engine_cpu.cgroups import Cgroups, MemoryLimit

MIB = 2**20

MOUNT_2 = "29 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
MOUNTS_1 = """\
22 31 0:3 / /proc rw,nosuid - proc proc rw
32 31 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"""


class Tree:
    """Files under a folder that stands for /."""

    def __init__(self, root: Path, mounts: str, groups: str) -> None:
        self.root = root
        self.write("proc/self/mountinfo", mounts)
        self.write("proc/self/cgroup", groups)

    def write(self, path: str, text: str | int) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")

    def group_2(self, path: str, **files: str | int) -> None:
        for name, text in files.items():
            self.write(f"sys/fs/cgroup/{path}/{name.replace('_', '.', 1)}", text)

    @property
    def limits(self) -> list[MemoryLimit]:
        return Cgroups(self.root).memory_limits()


def test_version_2_counts_no_page_cache_that_can_be_taken_back(tmp_path: Path) -> None:
    tree = Tree(tmp_path, MOUNT_2, "0::/app")
    statistics = f"anon {30 * MIB}\ninactive_file {5 * MIB}\nactive_file {3 * MIB}\nshmem 7"
    tree.group_2("app", memory_max=100 * MIB, memory_current=40 * MIB, memory_stat=statistics)
    assert tree.limits == [MemoryLimit(100 * MIB, 32 * MIB)]
    assert tree.limits[0].free == 68 * MIB


def test_the_lower_of_max_and_high_counts(tmp_path: Path) -> None:
    tree = Tree(tmp_path, MOUNT_2, "0::/app")
    tree.group_2("app", memory_max="max", memory_high=50 * MIB, memory_current=0)
    assert [one.limit for one in tree.limits] == [50 * MIB]
    tree.group_2("app", memory_max=20 * MIB)
    assert [one.limit for one in tree.limits] == [20 * MIB]


def test_groups_around_the_own_one_limit_it_too(tmp_path: Path) -> None:
    tree = Tree(tmp_path, MOUNT_2, "0::/outer/inner/own")
    tree.group_2("outer", memory_max=100 * MIB, memory_current=90 * MIB)
    tree.group_2("outer/inner", memory_max="max", memory_current=10 * MIB)
    tree.group_2("outer/inner/own", memory_max=200 * MIB, memory_current=5 * MIB)
    assert tree.limits == [MemoryLimit(200 * MIB, 5 * MIB), MemoryLimit(100 * MIB, 90 * MIB)]


def test_a_container_sees_its_own_group_as_the_top(tmp_path: Path) -> None:
    tree = Tree(tmp_path, MOUNT_2, "0::/")
    tree.group_2(".", memory_max=64 * MIB, memory_current=MIB)
    assert tree.limits == [MemoryLimit(64 * MIB, MIB)]


@pytest.mark.parametrize("own", ["/docker/abc", "/docker/abc/worker", "/../../elsewhere"])
def test_a_container_may_know_its_group_by_the_hosts_name(tmp_path: Path, own: str) -> None:
    mounts = MOUNTS_1.replace("0:32 / ", "0:32 /docker/abc ")
    tree = Tree(tmp_path, mounts, f"4:memory:{own}")
    tree.write("sys/fs/cgroup/memory/memory.limit_in_bytes", 64 * MIB)
    tree.write("sys/fs/cgroup/memory/memory.usage_in_bytes", MIB)
    assert tree.limits == [MemoryLimit(64 * MIB, MIB)]


def test_version_1_has_a_tree_for_each_controller(tmp_path: Path) -> None:
    tree = Tree(tmp_path, MOUNTS_1, "9:cpu,cpuacct:/c\n4:memory:/m\n0::/")
    tree.write("sys/fs/cgroup/memory/m/memory.limit_in_bytes", 64 * MIB)
    tree.write("sys/fs/cgroup/memory/m/memory.usage_in_bytes", 10 * MIB)
    tree.write("sys/fs/cgroup/memory/m/memory.stat", f"total_inactive_file {MIB}\ncache 7")
    tree.write("sys/fs/cgroup/memory/memory.limit_in_bytes", 9223372036854771712)
    tree.write("sys/fs/cgroup/memory/memory.usage_in_bytes", 10 * MIB)
    tree.write("sys/fs/cgroup/cpu/c/cpu.cfs_quota_us", 150000)
    tree.write("sys/fs/cgroup/cpu/c/cpu.cfs_period_us", 100000)
    assert tree.limits == [MemoryLimit(64 * MIB, 9 * MIB)]
    assert Cgroups(tmp_path).cpu_quota() == 1.5


def test_usage_above_the_limit_leaves_nothing_free() -> None:
    assert MemoryLimit(10, 12).free == 0


def test_the_least_share_of_the_processor_counts(tmp_path: Path) -> None:
    tree = Tree(tmp_path, MOUNT_2, "0::/a/b")
    tree.group_2("a/b", cpu_max="max 100000")
    assert Cgroups(tmp_path).cpu_quota() is None
    tree.group_2("a", cpu_max="400000 100000")
    assert Cgroups(tmp_path).cpu_quota() == 4
    tree.group_2("a/b", cpu_max="50000 100000")
    assert Cgroups(tmp_path).cpu_quota() == 0.5


def test_version_1_without_a_quota_says_minus_one(tmp_path: Path) -> None:
    tree = Tree(tmp_path, MOUNTS_1, "9:cpu,cpuacct:/\n4:memory:/")
    tree.write("sys/fs/cgroup/cpu/cpu.cfs_quota_us", -1)
    tree.write("sys/fs/cgroup/cpu/cpu.cfs_period_us", 100000)
    assert Cgroups(tmp_path).cpu_quota() is None


def test_without_control_groups_nothing_is_limited(tmp_path: Path) -> None:
    assert Cgroups(tmp_path).memory_limits() == []
    assert Cgroups(tmp_path).cpu_quota() is None
