"""Memory for weights: apart from each other, and freed with them."""

import gc
import mmap
import weakref

import pytest

pytest.importorskip("engine_cpu_kernels", reason="the native package is not installed")

from engine_cpu.native import memory
from engine_cpu.native.memory import ALIGNMENT, Shelf


def test_what_lies_on_a_shelf_is_aligned_and_apart() -> None:
    shelf = Shelf(4096)
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
    shelf = Shelf(4096)
    first, second = shelf.allocate(1000), shelf.allocate(1000)
    del first
    gc.collect()
    assert made[0]() is not None
    del second
    gc.collect()
    assert made[0]() is None
    assert shelf.allocate(10).tolist() == [0] * 10, "from a new one"
    assert len(made) == 2
