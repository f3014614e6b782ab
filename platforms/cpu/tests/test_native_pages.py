"""Weights move to large pages when it disturbs nobody, and stay what they are."""

import gc
import threading
import time
from collections.abc import Callable

import pytest
import torch

pytest.importorskip("engine_cpu_kernels", reason="the native package is not installed")

from engine_cpu.native import pages
from engine_cpu.native.memory import Shelf
from engine_cpu.native.pages import Mover

PAGE = 2**21
PATIENCE_S = 30


class Collapse:
    """Notes what would be moved."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []
        self.now = threading.Event()

    def __call__(self, address: int, size: int) -> None:
        self.seen.append((address, size))
        self.now.set()


@pytest.fixture
def collapse(monkeypatch: pytest.MonkeyPatch) -> Collapse:
    monkeypatch.setattr(pages, "_large_page", lambda: PAGE)
    return Collapse()


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """No time between steps counts as idle."""
    monkeypatch.setattr(pages, "IDLE_S", 3600.0)


def test_all_pages_move_while_nothing_runs(collapse: Collapse) -> None:
    shelf = Shelf(4 * PAGE)
    weights = [shelf.allocate(4 * PAGE), shelf.allocate(8 * PAGE)]
    mover = Mover(shelf, collapse)
    _wait_until(lambda: mover.done)
    for one in weights:
        inside = [
            at for at, size in collapse.seen if one.data_ptr() <= at < one.data_ptr() + len(one)
        ]
        assert len(inside) >= len(one) // PAGE - 1, "all but what sticks out at both ends"
        assert sorted(set(inside)) == inside
        assert all(at % PAGE == 0 and at + PAGE <= one.data_ptr() + len(one) for at in inside)
    assert {size for _, size in collapse.seen} == {PAGE}


@pytest.mark.usefixtures("busy")
def test_a_step_waits_for_one_page_at_most(
    collapse: Collapse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "SHARE", 1e9)  # always time for one more
    shelf = Shelf(4 * PAGE)
    weights = shelf.allocate(4 * PAGE)
    mover = Mover(shelf, collapse)
    with mover.step():
        assert not collapse.seen, "nothing is known of the time of steps yet"
    moved = []
    while not mover.done:
        with mover.step():
            moved.append(len(collapse.seen))
    pages_of_it = len(collapse.seen)
    assert moved[:pages_of_it] == list(range(1, pages_of_it + 1))
    with mover.step():
        pass
    assert len(collapse.seen) == pages_of_it
    mover.close()
    assert len(weights) == 4 * PAGE


@pytest.mark.usefixtures("busy")
def test_pages_take_their_share_of_the_time_of_steps(collapse: Collapse) -> None:
    page_s = 0.02

    def slowly(address: int, size: int) -> None:
        collapse(address, size)
        time.sleep(page_s)

    shelf = Shelf(64 * PAGE)
    weights = shelf.allocate(64 * PAGE)
    mover = Mover(shelf, slowly)
    began = time.monotonic()
    while len(collapse.seen) < 2:
        with mover.step():
            time.sleep(0.005)
    elapsed_s = time.monotonic() - began
    assert elapsed_s * pages.SHARE > page_s, "the second page came before the first was paid for"
    mover.close()
    assert len(weights) == 64 * PAGE


def test_nothing_moves_while_a_step_runs(
    collapse: Collapse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "IDLE_S", 0.001)
    shelf = Shelf(64 * PAGE)
    weights = shelf.allocate(64 * PAGE)
    mover = Mover(shelf, collapse)
    collapse.now.wait(PATIENCE_S)
    with mover.step():
        collapse.now.clear()
        before = len(collapse.seen)
        assert not collapse.now.wait(0.1)
        assert len(collapse.seen) == before
    mover.close()
    assert len(weights) == 64 * PAGE


def test_a_step_that_comes_while_pages_move_waits_for_the_one_under_way(
    collapse: Collapse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "IDLE_S", 0.2)

    def slowly(address: int, size: int) -> None:
        collapse(address, size)
        time.sleep(0.01)

    shelf = Shelf(64 * PAGE)
    weights = shelf.allocate(64 * PAGE)
    mover = Mover(shelf, slowly)
    assert collapse.now.wait(PATIENCE_S)
    before = len(collapse.seen)
    with mover.step():
        assert len(collapse.seen) <= before + 1, "one may have begun just then"
    mover.close()
    assert len(weights) == 64 * PAGE


@pytest.mark.usefixtures("busy")
def test_what_was_freed_is_passed_over(collapse: Collapse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "SHARE", 1e9)
    shelf = Shelf(2 * PAGE)
    freed, kept = shelf.allocate(2 * PAGE), shelf.allocate(2 * PAGE)
    del freed
    gc.collect()
    mover = Mover(shelf, collapse)
    while not mover.done:
        with mover.step():
            pass
    assert collapse.seen
    assert all(kept.data_ptr() <= at < kept.data_ptr() + len(kept) for at, _ in collapse.seen)


def test_without_large_pages_nothing_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "_large_page", lambda: 0)
    shelf, collapse = Shelf(4 * PAGE), Collapse()
    weights = shelf.allocate(4 * PAGE)
    mover = Mover(shelf, collapse)
    with mover.step():
        pass
    _wait_until(lambda: mover.done)
    assert not collapse.seen
    assert len(weights) == 4 * PAGE


def test_what_moved_is_what_it_was() -> None:
    if not pages._large_page():
        pytest.skip("this system has no large pages")
    shelf = Shelf(8 * PAGE)
    weights = shelf.allocate(8 * PAGE)
    weights.view(torch.int64).copy_(torch.arange(PAGE))
    mover = Mover(shelf)
    _wait_until(lambda: mover.done)
    assert torch.equal(weights.view(torch.int64), torch.arange(PAGE))
    if not _large_bytes(weights.data_ptr()):
        pytest.skip("the system has large pages, but gives none when asked")


def _wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


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
