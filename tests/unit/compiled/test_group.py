"""Every collective between real processes."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from engine.compiled import GroupCommunicator, ProgramCommunicator
from engine.config import EngineConfig
from engine.errors import ConfigError
from engine.platform import Communicator
from engine_cpu.platform import CpuPlatform

#: Importing torch takes seconds on a busy machine.
TIMEOUT_S = 120
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int64)


def play(name: str, place: str, ranks: int) -> None:
    """Run the function `name` of this file, as (rank, place), in a process for each rank."""
    players = [
        subprocess.Popen(
            [sys.executable, "-W", "error", __file__, name, str(rank), place],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(ranks)
    ]
    try:
        outputs = [player.communicate(timeout=TIMEOUT_S)[0] for player in players]
    finally:
        for player in players:
            player.kill()
    assert [player.returncode for player in players] == [0] * ranks, "\n".join(outputs)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def of_rank(rank: int, *shape: int) -> Tensor:
    return torch.arange(torch.Size(shape).numel()).view(shape) + 10 * rank


def every_collective(rank: int, place: str) -> None:
    group = GroupCommunicator(place, rank, (0, 1), timeout_s=60)
    assert (group.rank, group.size) == (rank, 2)
    for dtype in DTYPES:
        check_reductions(group, dtype)
        check_moves(group, dtype)
    group.barrier()
    group.close()
    group.close()
    with pytest.raises(ValueError, match="was closed"):
        group.barrier()


def check_reductions(group: Communicator, dtype: torch.dtype) -> None:
    mine, both = of_rank(group.rank, 4, 6), [of_rank(rank, 4, 6) for rank in range(2)]
    total = (both[0] + both[1]).to(dtype)
    assert torch.equal(group.all_reduce(mine.to(dtype, copy=True)), total)
    # A view with gaps, as a slice of a fused projection is.
    assert torch.equal(group.all_reduce(mine.to(dtype, copy=True)[:, ::2]), total[:, ::2])
    for dim in (0, 1, -1):
        share = total.chunk(2, dim)[group.rank]
        assert torch.equal(group.reduce_scatter(mine.to(dtype, copy=True), dim), share)
    with pytest.raises(ValueError, match="cannot be divided by 2"):
        group.reduce_scatter(torch.ones(3, 6), 0)


def check_moves(group: Communicator, dtype: torch.dtype) -> None:
    mine, both = of_rank(group.rank, 4, 6), [of_rank(rank, 4, 6).to(dtype) for rank in range(2)]
    for dim in (0, 1, -1):
        assert torch.equal(group.all_gather(mine.to(dtype, copy=True), dim), torch.cat(both, dim))
    for source in (0, 1):
        assert torch.equal(group.broadcast(mine.to(dtype, copy=True), source), both[source])
    send = ([1, 3], [4, 0])[group.rank]
    receive = ([1, 4], [3, 0])[group.rank]
    expected = (torch.cat([both[0][:1], both[1][:4]]), both[0][1:])[group.rank]
    assert torch.equal(group.all_to_all(mine.to(dtype, copy=True), send, receive), expected)
    if group.rank == 0:
        group.send(both[0].t(), 1)
    else:
        target = torch.zeros(4, 6, dtype=dtype)
        view = target.t()  # not contiguous: what is received must land in the tensor given
        assert group.receive(view, 0) is view
        assert torch.equal(target, both[0])


def test_two_processes_do_every_collective() -> None:
    play("every_collective", f"tcp://127.0.0.1:{free_port()}", 2)


def through_a_registered_backend(rank: int, place: str) -> None:
    made = []

    def create(store, rank, size, timeout):
        made.append(torch.distributed.ProcessGroupGloo(store, rank, size, timeout))
        return made[-1]

    torch.distributed.Backend.register_backend("vendor", create, devices=["cpu"])
    group = GroupCommunicator(place, rank, (0, 1), backend="vendor", timeout_s=60)
    check_reductions(group, torch.float32)
    check_moves(group, torch.float32)
    assert len(made) == 1
    group.close()


def test_a_vendor_s_own_backend_does_every_collective(tmp_path: Path) -> None:
    play("through_a_registered_backend", f"file://{tmp_path}/meet", 2)


def through_the_extended_interface(rank: int, place: str) -> None:
    told = []

    def create(options, backend_options):
        told.append((options.group_id, options.global_ranks_in_group, backend_options))
        return torch.distributed.ProcessGroupGloo(
            options.store, options.group_rank, options.group_size, options.timeout
        )

    register = torch.distributed.Backend.register_backend
    register("extended", create, extended_api=True, devices=["cpu"])
    group = GroupCommunicator(place, rank, (1, 0), backend="extended", timeout_s=60)
    assert group.rank == 1 - rank
    check_reductions(group, torch.float32)
    assert told == [("1-0/0", [1, 0], None)]
    group.close()


def test_a_vendor_s_backend_may_be_registered_with_the_extended_interface(tmp_path: Path) -> None:
    play("through_the_extended_interface", f"file://{tmp_path}/meet", 2)


def test_two_engines_of_one_process_have_groups_of_their_own(tmp_path: Path) -> None:
    first = GroupCommunicator(f"file://{tmp_path}/first", 0, (0,))
    second = GroupCommunicator(f"file://{tmp_path}/second", 0, (0,))
    assert first.name != second.name
    again = ProgramCommunicator(second)
    assert torch.equal(again.all_reduce(torch.ones(2)), torch.ones(2))
    first_name = first.name
    first.close()
    second.close()
    third = GroupCommunicator(f"file://{tmp_path}/third", 0, (0,))
    assert third.name == first_name
    third.close()


def test_a_backend_that_torch_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no distributed backend 'nonesuch'; it has gloo"):
        GroupCommunicator(f"file://{tmp_path}/meet", 0, (0,), backend="nonesuch")


def groups_of_a_platform(rank: int, port: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MASTER_ADDR", "127.0.0.1")
        patch.setenv("MASTER_PORT", port)
        platform = CpuPlatform(EngineConfig(), rank)
        everyone = platform.communicator((0, 1, 2))
        again = platform.communicator((0, 1, 2))
        assert everyone.all_reduce(torch.tensor([1 << rank])).item() == 7
        if rank > 0:  # a group without rank 0, numbered from 0 in the order given
            pair = platform.communicator((2, 1))
            assert pair.rank == (None, 1, 0)[rank]
            assert pair.all_gather(torch.tensor([rank])).tolist() == [2, 1]
        assert again.all_gather(torch.tensor([rank])).tolist() == [0, 1, 2]
        assert platform.communicator((rank,)).size == 1
        everyone.barrier()
        platform.close()
        platform.close()


def test_a_platform_makes_groups_of_some_of_its_ranks() -> None:
    play("groups_of_a_platform", str(free_port()), 3)


def leaves_early(rank: int, place: str) -> None:
    group = GroupCommunicator(place, rank, (0, 1), timeout_s=TIMEOUT_S)
    assert group.all_reduce(torch.tensor([rank])).item() == 1
    if rank == 0:
        with pytest.raises(RuntimeError):
            group.all_reduce(torch.ones(1))


def test_a_rank_that_left_is_an_error_and_no_hang(tmp_path: Path) -> None:
    play("leaves_early", f"file://{tmp_path}/meet", 2)


def test_only_members_may_join() -> None:
    with pytest.raises(ConfigError, match=r"rank 2 cannot join the group of ranks \(0, 1\)"):
        GroupCommunicator("tcp://127.0.0.1:1", 2, (0, 1))


@pytest.mark.parametrize("place", ["", "env://", "tcp://127.0.0.1", "file://", "127.0.0.1:80"])
def test_a_place_that_is_none_is_refused(place: str) -> None:
    with pytest.raises(ConfigError, match="tcp://HOST:PORT or file:///PATH"):
        GroupCommunicator(place, 0, (0, 1))


if __name__ == "__main__":
    torch.set_num_threads(1)
    globals()[sys.argv[1]](int(sys.argv[2]), sys.argv[3])
