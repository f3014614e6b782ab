"""Each rank has a core of its own."""

import pytest

from engine.errors import ConfigError
from engine_neuron import environment
from engine_neuron.cores import VARIABLE, choose


@pytest.mark.parametrize(
    ("rank", "indices", "visible", "core"),
    [
        (0, (), "", 0),
        (3, (), "", 3),
        (3, (), "3", 3),  # as `environment` set it
        (1, (), "4-7", 5),
        (2, (), "0,2,8-9", 8),
        (1, (4, 6, 7, 9), "1", 6),
    ],
)
def test_a_rank_computes_on_its_core(rank, indices, visible, core):
    assert choose(rank, 4, indices, visible) == core


def test_one_rank_computes_on_the_one_core_that_is_visible():
    assert choose(0, 1, (), "7") == 7


@pytest.mark.parametrize(
    ("rank", "indices", "visible", "said"),
    [
        (1, (5,), "", "2 ranks need a core each: --device names 1"),
        (0, (), "1", "NEURON_RT_VISIBLE_CORES=1 has 1; name one for each rank"),
        (1, (), "5", "NEURON_RT_VISIBLE_CORES=5 has 1"),
        (0, (), "first", "'first' is no list of cores"),
        (0, (), "5-4", "'5-4' names no core"),
    ],
)
def test_ranks_without_a_core_each_are_told(rank, indices, visible, said):
    with pytest.raises(ConfigError, match=said):
        choose(rank, 2, indices, visible)


def test_ranks_see_different_cores_unless_the_user_says_otherwise():
    found = [choose(rank, 4, (), environment(rank)[VARIABLE]) for rank in range(4)]
    assert found == [0, 1, 2, 3]
