"""Collectives between two devices, each in a process of its own."""

import os
import socket
import subprocess
import sys

import pytest
import torch

from engine.config import EngineConfig
from engine_sim.errors import DeviceLostError
from engine_sim.platform import SimPlatform

TIMEOUT_S = 120  # importing torch takes seconds on a busy machine
DTYPES = (torch.float32, torch.bfloat16, torch.int64)


def play(*names):
    """Run these functions of this file, with a platform, in a process for each rank."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = str(one.getsockname()[1])
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    players = [
        subprocess.Popen(
            [sys.executable, "-W", "error", __file__, str(rank), *names],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        for rank in range(2)
    ]
    try:
        outputs = [player.communicate(timeout=TIMEOUT_S)[0] for player in players]
    finally:
        for player in players:
            player.kill()
    assert [player.returncode for player in players] == [0, 0], "\n".join(outputs)


def every_collective(platform):
    group = platform.communicator((0, 1))
    rank, device = platform.rank, platform.device
    assert (group.rank, group.size, device) == (rank, 2, f"sim:{rank}")
    for dtype in DTYPES:
        both = [(torch.arange(24).view(4, 6) + 10 * r).to(dtype) for r in range(2)]
        mine, total = both[rank], both[0] + both[1]

        def here(mine=mine):
            return mine.clone().to(device)

        found = {
            "all_reduce": (group.all_reduce(here()), total),
            "all_reduce a view": (group.all_reduce(here()[:, ::2]), total[:, ::2]),
            "all_gather": (group.all_gather(here(), 1), torch.cat(both, 1)),
            "reduce_scatter": (group.reduce_scatter(here(), 0), total.chunk(2, 0)[rank]),
            "broadcast": (group.broadcast(here(), 1), both[1]),
            "all_to_all": (
                group.all_to_all(here(), [[1, 3], [4, 0]][rank], [[1, 4], [3, 0]][rank]),
                [torch.cat([both[0][:1], both[1][:4]]), both[0][1:]][rank],
            ),
        }
        for name, (answer, right) in found.items():
            assert answer.device == torch.device(device), name
            assert torch.equal(answer.cpu(), right), name
        if rank == 0:
            group.send(here().t(), 1)
        else:
            target = torch.zeros(4, 6, dtype=dtype).to(device)
            view = target.t()
            assert group.receive(view, 0) is view
            assert torch.equal(target.cpu(), both[0])
    group.barrier()
    with pytest.raises(ValueError, match="was given a tensor of cpu"):
        group.all_reduce(torch.ones(2))


def time_and_memory(platform):
    """The link is on the clock, results are in the books, and nobody waits for the device."""
    group, chip = platform.communicator((0, 1)), platform.chip
    x = torch.ones(1000).to(platform.device)
    used, before_s = chip.books.used, chip.clock.total_s
    with chip.no_waiting():
        summed = group.all_reduce(x)
        gathered = group.all_gather(x)
    assert summed is x
    assert chip.books.used - used == gathered.nbytes
    profile = chip.clock.profile
    expected_s = 2 * profile.link_latency_s + (4000 + 4000) / profile.link_bandwidth
    assert abs(chip.clock.total_s - before_s - expected_s) < 1e-12


def a_lost_device(platform):
    group = platform.communicator((0, 1))
    x = torch.ones(3).to(platform.device)
    group.all_reduce(x)
    platform.chip.lost = "for this test"
    with pytest.raises(DeviceLostError, match=f"sim:{platform.rank} is lost: for this test"):
        group.all_reduce(x)
    with pytest.raises(DeviceLostError, match="is lost"):
        group.barrier()


def test_two_devices_do_every_collective_until_one_is_lost():
    play("every_collective", "time_and_memory", "a_lost_device")


if __name__ == "__main__":
    made = SimPlatform(EngineConfig(device="sim"), int(sys.argv[1]))
    for each in sys.argv[2:]:
        globals()[each](made)
    made.close()
