"""What is built into torch as a backend of the engine's groups: gloo plays the library's part."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import torch
from torch.distributed import ProcessGroupGloo

from engine.compiled import GroupCommunicator
from engine_triton import collectives

NAME = "engine_test"


class Library:
    """Made as torch's libraries of GPUs are; remembers the options it was given."""

    def __init__(self) -> None:
        self.options: list[ProcessGroupGloo._Options] = []

    def __call__(self, store, rank, size, options):
        self.options.append(options)
        options._devices = [ProcessGroupGloo.create_default_device()]
        return ProcessGroupGloo(store, rank, size, options)


def test_two_ranks_meet_through_a_built_in_library(tmp_path):
    library = Library()
    collectives.register(NAME, "cpu", library, ProcessGroupGloo._Options)
    collectives.register(NAME, "cpu", Library(), ProcessGroupGloo._Options)  # the first stays

    def play(rank: int) -> list[list[float]]:
        group = GroupCommunicator(
            f"file://{tmp_path}/meet", rank, (0, 1), backend=NAME, timeout_s=60
        )
        group.barrier()
        mine = torch.tensor([1.0, 2.0]) * (rank + 1)
        found = [group.all_reduce(mine.clone()).tolist(), group.all_gather(mine).tolist()]
        group.close()
        return found

    with ThreadPoolExecutor(2) as threads:
        both = list(threads.map(play, (0, 1)))
    assert both == [[[3.0, 6.0], [1.0, 2.0, 2.0, 4.0]]] * 2
    assert [one.global_ranks_in_group for one in library.options] == [[0, 1], [0, 1]]
    assert {one._timeout for one in library.options} == {timedelta(seconds=60)}
    assert {one.group_name for one in library.options} == {"0-1/0"}
