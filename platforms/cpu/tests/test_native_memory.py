"""Memory for weights: apart from each other, freed with them, and the same in large pages."""

import gc
import mmap
import time
import weakref

import pytest
import torch

pytest.importorskip("engine_cpu_kernels", reason="the native package is not installed")

from engine_cpu.native import memory
from engine_cpu.native.memory import ALIGNMENT, Shelf

PAGE = 2**21
PATIENCE_S = 30


def test_what_lies_on_a_shelf_is_aligned_and_apart() -> None:
    shelf = Shelf(4096, delay_s=3600)
    taken = [shelf.allocate(size) for size in (1, 100, 4000, 64, 10_000, 5)]
    assert [len(one) for one in taken] == [1, 100, 4000, 64, 10_000, 5]
    assert all(one.data_ptr() % ALIGNMENT == 0 for one in taken)
    for number, one in enumerate(taken):
        assert not one.any()
        one.fill_(number + 1)
    assert all(bool((one == number + 1).all()) for number, one in enumerate(taken))


def test_a_mapping_is_freed_with_the_last_that_lies_in_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[weakref.ref[mmap.mmap]] = []

    def noted(num_bytes: int) -> mmap.mmap:
        mapping = real(num_bytes)
        made.append(weakref.ref(mapping))
        return mapping

    real = memory._map
    monkeypatch.setattr(memory, "_map", noted)
    shelf = Shelf(4096, delay_s=3600)
    first, second = shelf.allocate(1000), shelf.allocate(1000)
    del first
    gc.collect()
    assert made[0]() is not None
    del second
    gc.collect()
    assert made[0]() is None
    assert shelf.allocate(10).tolist() == [0] * 10, "from a new one"
    assert len(made) == 2


def test_what_moved_to_large_pages_is_what_it_was() -> None:
    if not memory._large_page():
        pytest.skip("this system has no large pages")
    shelf = Shelf(8 * PAGE, delay_s=0.2)
    weights = shelf.allocate(8 * PAGE)
    weights.view(torch.int64).copy_(torch.arange(PAGE))
    end = time.monotonic() + PATIENCE_S
    while not (large := _large_bytes(weights.data_ptr())) and time.monotonic() < end:
        time.sleep(0.05)
    if not large:
        pytest.skip("the system has large pages, but gives none when asked")
    time.sleep(0.2)  # the others follow
    assert torch.equal(weights.view(torch.int64), torch.arange(PAGE))


def _large_bytes(address: int) -> int:
    """In large pages, of the mapping that begins at or before the address."""
    inside = False
    with open("/proc/self/smaps", encoding="ascii") as lines:
        for line in lines:
            head = line.split()
            if "-" in head[0] and not head[0].endswith(":"):
                start, stop = (int(text, 16) for text in head[0].split("-"))
                inside = start <= address < stop
            elif inside and head[0] == "AnonHugePages:":
                return int(head[1]) * 1024
    return 0
