import pytest

from engine.errors import CapacityError
from engine.platform import MemorySnapshot
from engine.runner.memory import MIB, size_cache


def size(*, others=0, weights=100, activations=50, wanted=None, most_blocks=10_000, **changes):
    """A device of 1,000 MiB; blocks of 1 MiB; 10 MiB of libraries."""
    start = MemorySnapshot(1000 * MIB, (990 - others) * MIB, 10 * MIB, 10 * MIB)
    used = 10 + weights
    loaded = MemorySnapshot(1000 * MIB, (1000 - others - used) * MIB, used * MIB, used * MIB)
    arguments = {
        "start": start,
        "loaded": loaded,
        "weights": weights * MIB,
        "activations": activations * MIB,
        "fraction": 0.9,
        "block_bytes": MIB,
        "block_size": 16,
        "most_blocks": most_blocks,
        "wanted": wanted,
    }
    return size_cache(**arguments | changes)


def test_the_cache_gets_what_the_others_leave_of_the_fraction():
    ledger = size()
    assert ledger.num_blocks == 900 - 100 - 10 - 50
    assert ledger.reserve == 100 * MIB
    assert ledger.limited_by == "all that fits"


def test_the_parts_of_the_ledger_add_up_to_the_device():
    ledger = size(others=200)
    parts = ledger.others + ledger.weights + ledger.runtime + ledger.activations + ledger.kv
    assert parts + ledger.reserve == ledger.total
    assert ledger.others == 200 * MIB
    assert ledger.num_blocks == 900 - 200 - 100 - 10 - 50


def test_what_programs_will_hold_is_left_free_and_has_a_line():
    ledger = size(programs=30 * MIB)
    assert ledger.num_blocks == 900 - 100 - 10 - 50 - 30
    assert ledger.reserve == 100 * MIB
    assert "programs" in str(ledger)
    assert "programs" not in str(size())


def test_the_cache_is_no_larger_than_all_requests_can_use():
    ledger = size(most_blocks=64)
    assert ledger.num_blocks == 64
    assert "max_requests" in ledger.limited_by


def test_the_users_number_wins_when_it_fits():
    assert size(wanted=7).num_blocks == 7
    with pytest.raises(CapacityError, match="800 KV blocks"):
        size(wanted=800)


def test_a_model_that_leaves_no_room_for_a_block_is_refused_with_a_way_out():
    with pytest.raises(CapacityError, match="raise memory_fraction"):
        size(weights=870)


def test_the_ledger_reads_as_lines_of_name_and_size():
    lines = str(size()).splitlines()
    assert lines[0].split() == ["device", "total", "1,000.0", "MiB"]
    assert any(line.startswith("KV cache") and "740 blocks" in line for line in lines)


def test_a_device_may_keep_the_cache_to_a_share_of_the_memory():
    ledger = size(cache_share=0.3)
    assert ledger.num_blocks == 270
    assert ledger.limited_by == "the device's share for a cache"
    assert size(cache_share=0.95).limited_by == "all that fits"
    assert size(cache_share=0.3, wanted=200).num_blocks == 200
    with pytest.raises(CapacityError, match="300 KV blocks"):
        size(cache_share=0.3, wanted=300)
