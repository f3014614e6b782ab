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
        (1, (4, 6), "1", 6),
    ],
)
def test_a_rank_computes_on_its_core(rank, indices, visible, core):
    assert choose(rank, indices, visible) == core


@pytest.mark.parametrize(
    ("rank", "indices", "visible", "said"),
    [
        (1, (5,), "", "rank 1 has no core: --device names 1"),
        (2, (), "4-5", "NEURON_RT_VISIBLE_CORES=4-5 has 2"),
        (0, (), "first", "'first' is no list of cores"),
        (0, (), "5-4", "'5-4' names no core"),
    ],
)
def test_a_rank_without_a_core_is_told(rank, indices, visible, said):
    with pytest.raises(ConfigError, match=said):
        choose(rank, indices, visible)


def test_ranks_see_different_cores_unless_the_user_says_otherwise():
    assert [choose(rank, (), environment(rank)[VARIABLE]) for rank in range(4)] == [0, 1, 2, 3]
