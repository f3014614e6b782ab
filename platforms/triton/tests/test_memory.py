"""Memory as the allocator and the driver count it."""

from dataclasses import dataclass

from engine_triton.memory import DeviceMemory

GIB = 1 << 30


@dataclass
class Counts:
    """The numbers of a device."""

    free: int = 60 * GIB
    total: int = 80 * GIB
    now: int = 10 * GIB
    peak: int = 12 * GIB
    released: int = 0

    def memory(self):
        return self.free, self.total

    def reserved(self):
        return self.now, self.peak

    def forget_peak(self):
        self.peak = self.now

    def release_cached(self):
        self.released += 1


def test_without_the_driver_s_count_only_the_allocator_s_memory_is_ours():
    found = DeviceMemory(Counts()).snapshot()
    assert (found.total, found.free) == (80 * GIB, 60 * GIB)
    assert (found.used, found.peak) == (10 * GIB, 12 * GIB)


def test_what_the_driver_counts_beyond_the_allocator_is_ours_too_at_every_moment():
    """The context, libraries and captured programs do not come and go with a step."""
    found = DeviceMemory(Counts(), lambda: 11 * GIB).snapshot()
    assert (found.used, found.peak) == (11 * GIB, 13 * GIB)


def test_a_driver_that_knows_less_than_the_allocator_is_not_believed():
    found = DeviceMemory(Counts(), lambda: 3 * GIB).snapshot()
    assert (found.used, found.peak) == (10 * GIB, 12 * GIB)


def test_a_peak_counts_from_the_block_s_start():
    counts = Counts()
    memory = DeviceMemory(counts)
    with memory.measure():
        assert memory.snapshot().peak == 10 * GIB
        counts.peak = 11 * GIB
        assert memory.snapshot().peak == 11 * GIB


def test_cached_memory_is_given_back_when_asked_for():
    counts = Counts()
    DeviceMemory(counts).release_cached()
    assert counts.released == 1
