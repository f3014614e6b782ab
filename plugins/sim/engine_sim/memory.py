"""The device's memory: exact books, and a limit."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from engine.platform import MemoryProfiler, MemorySnapshot
from engine_sim.words import MEMORY


class Books:
    """Bytes of one device. What lives is known by its `Block`s; there is no cache beside them."""

    def __init__(self, device: str) -> None:
        self.limit = MEMORY
        self.used = 0
        self.peak = 0
        self._device = device
        self._lock = threading.RLock()  # blocks may die in any thread, even in this one's `take`

    @property
    def free(self) -> int:
        return max(0, self.limit - self.used)

    def check(self, num_bytes: int) -> None:
        """
        Raises:
            OutOfMemoryError: so many bytes are not free.
        """
        if num_bytes > self.free:
            raise torch.OutOfMemoryError(
                f"{self._device}: out of memory: tried to allocate {num_bytes:,} bytes,"
                f" {self.free:,} are free of {self.limit:,} ({self.used:,} are in use)"
            )

    def take(self, num_bytes: int, address: int) -> "Block":
        """
        Raises:
            OutOfMemoryError: as `check`.
        """
        with self._lock:
            self.check(num_bytes)
            self.used += num_bytes
            self.peak = max(self.peak, self.used)
        return Block(self, num_bytes, address)

    def give_back(self, num_bytes: int) -> None:
        with self._lock:
            self.used -= num_bytes


class Block:
    """One allocation, shared by a tensor and its views. Given back with the last of them."""

    __slots__ = ("_books", "address", "num_bytes")

    def __init__(self, books: Books, num_bytes: int, address: int) -> None:
        self._books = books
        self.num_bytes = num_bytes
        self.address = address

    def __del__(self) -> None:
        self._books.give_back(self.num_bytes)


class SimMemory(MemoryProfiler):
    """Tells from the device's own books."""

    kind = "measured"

    def __init__(self, books: Books) -> None:
        self._books = books

    def snapshot(self) -> MemorySnapshot:
        books = self._books
        used = min(books.used, books.limit)
        return MemorySnapshot(books.limit, books.free, used, max(used, books.peak))

    @contextmanager
    def measure(self) -> Iterator[None]:
        self._books.peak = self._books.used
        yield
