import pytest

from engine.errors import CapacityError
from engine.kvcache import BlockPool


def test_blocks_are_taken_once_and_come_back():
    pool = BlockPool(4)
    taken = pool.take(3)
    assert len(set(taken)) == 3
    assert pool.num_free == 1
    pool.give_back(taken)
    assert pool.num_free == 4


def test_taking_more_than_is_free_takes_nothing():
    pool = BlockPool(2)
    with pytest.raises(CapacityError, match="asked for 3 blocks, 2 are free"):
        pool.take(3)
    assert pool.num_free == 2


def test_a_shared_block_is_free_only_when_the_last_holder_gave_it_back():
    pool = BlockPool(1)
    [block] = pool.take(1)
    pool.share([block])
    pool.give_back([block])
    assert pool.num_free == 0
    pool.give_back([block])
    assert pool.num_free == 1


def test_a_free_block_is_found_by_its_content_until_it_is_taken():
    pool = BlockPool(2)
    [block] = pool.take(1)
    pool.remember(block, b"content")
    pool.give_back([block])
    assert pool.find(b"content") == block
    pool.take(2)
    assert pool.find(b"content") is None


def test_the_least_recently_freed_content_is_evicted_first_and_empty_blocks_before_it():
    pool = BlockPool(3)
    first, second, third = pool.take(3)
    pool.remember(first, b"first")
    pool.remember(second, b"second")
    pool.give_back([first])
    pool.give_back([second])
    pool.give_back([third])  # nothing worth keeping
    assert pool.take(3) == [third, first, second]


def test_the_first_block_of_some_content_stays_the_one_found():
    pool = BlockPool(2)
    first, second = pool.take(2)
    pool.remember(first, b"same")
    pool.remember(second, b"same")
    assert pool.find(b"same") == first
    pool.give_back([second])
    assert pool.take(1) == [second]
    assert pool.find(b"same") == first


def test_nothing_is_found_after_forgetting_all():
    pool = BlockPool(1)
    [block] = pool.take(1)
    pool.remember(block, b"content")
    pool.forget_all()
    assert pool.find(b"content") is None
