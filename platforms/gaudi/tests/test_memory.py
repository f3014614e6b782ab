"""What the bridge reports, less what programs will take."""

from engine_gaudi.memory import HpuMemory

GIB = 2**30


class Counted:
    """The four calls of `torch.hpu` that are used, on numbers."""

    def __init__(self, used):
        self.used = self.peak = used

    def mem_get_info(self):
        return 100 * GIB - self.used, 100 * GIB

    def memory_allocated(self):
        return self.used

    def max_memory_allocated(self):
        return self.peak

    def reset_peak_memory_stats(self):
        self.peak = self.used


def test_a_tenth_of_the_device_is_left_to_programs():
    now = HpuMemory(Counted(20 * GIB)).snapshot()
    assert (now.total, now.free, now.used) == (90 * GIB, 70 * GIB, 20 * GIB)
    assert now.total - now.free - now.used == 0  # nobody else uses the device


def test_free_memory_ends_where_the_reserve_begins():
    now = HpuMemory(Counted(95 * GIB)).snapshot()
    assert (now.free, now.used) == (0, 90 * GIB)
    assert now.peak >= now.used


def test_a_measurement_forgets_an_earlier_peak():
    device = Counted(GIB)
    device.peak = 5 * GIB
    memory = HpuMemory(device)
    assert memory.snapshot().peak == 5 * GIB
    with memory.measure():
        assert memory.snapshot().peak == GIB
