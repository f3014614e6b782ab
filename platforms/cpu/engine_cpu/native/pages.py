"""Weights move to large pages: all at once while nobody waits, else now and then before a step."""

import ctypes
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from engine_cpu.native.memory import Shelf

#: What Linux says of large pages, and how it is asked for one.
LARGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage")
MADV_COLLAPSE = 25

#: Nobody waits: seconds since the last step.
IDLE_S = 0.05
#: Of the time of steps, what moving between them may take.
SHARE = 0.1


class Mover:
    """Moves what lies on a shelf to large pages, where the system has them.

    A page takes some milliseconds, now and then many: it is cleared, often fetched from a
    hypervisor first, and filled. A thread moves one after another while no step runs. Where
    requests leave no such time, some of the steps wait for one page.
    """

    def __init__(self, shelf: Shelf, collapse: Callable[[int, int], None] | None = None) -> None:
        """`collapse`: moves so many bytes at an address."""
        self._pages = _pages(shelf, collapse or _collapse())
        self._done = threading.Event()
        self._alone = threading.Lock()  # a step and a page never at once
        self._busy = time.monotonic()  # when a step was last asked for, or ended
        self._credit_s = 0.0
        threading.Thread(target=self._while_idle, daemon=True).start()

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around a step."""
        self._busy = time.monotonic()  # or the thread, which is quicker, would take the lock again
        with self._alone:
            began = time.monotonic()
            if self._credit_s > 0:
                self._move()
                self._credit_s -= time.monotonic() - began
                began = time.monotonic()
            try:
                yield
            finally:
                self._busy = time.monotonic()
                self._credit_s += SHARE * (self._busy - began)

    @property
    def done(self) -> bool:
        return self._done.is_set()

    def close(self) -> None:
        """Move nothing more."""
        self._done.set()

    def _while_idle(self) -> None:
        while not self.done:
            wait = IDLE_S
            if self._alone.acquire(blocking=False):
                try:
                    wait = self._busy + IDLE_S - time.monotonic()
                    if wait <= 0:
                        self._move()
                finally:
                    self._alone.release()
            self._done.wait(max(0.0, wait))

    def _move(self) -> None:
        if next(self._pages, None) is None:
            self._done.set()


def _pages(shelf: Shelf, collapse: Callable[[int, int], None]) -> Iterator[int]:
    """The addresses of what was moved, page by page."""
    size = _large_page()
    for mapping in shelf.take_new() if size else ():
        offset = 0
        while (held := mapping()) is not None:
            start = torch.frombuffer(held, dtype=torch.uint8).data_ptr()
            address = -(-start // size) * size + offset
            if address + size > start + len(held):
                break
            collapse(address, size)
            del held  # it may be freed while nobody moves
            offset += size
            yield address


def _collapse() -> Callable[[int, int], None]:
    """madvise(2), MADV_COLLAPSE, Linux 6.1: where it is refused all stays as it is."""
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return lambda address, size: madvise(address, size, MADV_COLLAPSE)


def _large_page() -> int:
    """Bytes; 0 where there are none, or the administrator does not want them."""
    try:
        if "[never]" in (LARGE_PAGES / "enabled").read_text():
            return 0
        return int((LARGE_PAGES / "hpage_pmd_size").read_text())
    except (OSError, ValueError):
        return 0
