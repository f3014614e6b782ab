"""Two processes, each with a platform of one rank, that do what they are told at the same time."""

import multiprocessing
import os
import socket
import threading
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from engine.config import DeviceChoice, resolve
from engine.testing.checks.origin import Origin

SIZE = 2
LOOPBACK = "127.0.0.1"

#: Seconds: until both have imported everything and met, and for what they are told.
MEETING_S, PLAY_S = 120.0, 60.0


@dataclass(frozen=True, slots=True)
class _Rank:
    """What a process must know. It pickles."""

    number: int
    origin: Origin
    settings: dict[str, Any]
    environment: dict[str, str]


class RankPair:
    """
    Raises:
        AssertionError: they did not meet in time, or one of them failed. So does `play`, and when a
            result is wrong. Where not both came to an end, `broken` is set.
    """

    def __init__(self, origin: Origin, device: str) -> None:
        self.broken = False
        self._wires: list[Connection] = []
        self._processes: list[Any] = []
        context = multiprocessing.get_context("spawn")
        meeting = {
            "MASTER_ADDR": LOOPBACK,
            "MASTER_PORT": str(_free_port()),
            "WORLD_SIZE": str(SIZE),
        }
        settings = {"device": without_indices(device), "tensor_parallel": SIZE}
        for number in range(SIZE):
            ours, theirs = context.Pipe()
            own = {**meeting, "RANK": str(number), "LOCAL_RANK": str(number)}
            rank = _Rank(number, origin, settings, own)
            process = context.Process(target=_follow, args=(rank, theirs), daemon=True)
            process.start()
            theirs.close()
            self._wires.append(ours)
            self._processes.append(process)
        self._await("meet", MEETING_S)

    def play(self, name: str, dtype: str) -> None:
        """Both ranks play a part of `collectives.PLAYS`."""
        for wire in self._wires:
            wire.send((name, dtype))
        self._await(f"end {name}", PLAY_S)

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()
        for wire in self._wires:
            wire.close()

    def _await(self, what: str, limit_s: float) -> None:
        """An answer of each, which must be empty."""
        until, open_wires = time.monotonic() + limit_s, list(self._wires)
        wrong: list[str] = []
        self.broken = True
        while open_wires:
            ready = wait(open_wires, max(0.0, until - time.monotonic()))
            silent = [self._wires.index(one) for one in open_wires]
            assert ready, f"ranks {silent} did not {what} within {limit_s:g} s"
            for wire in ready:
                assert isinstance(wire, Connection)
                if answer := self._answer(wire):
                    wrong.append(answer)
                open_wires.remove(wire)
        self.broken = False
        assert not wrong, "; ".join(wrong)

    def _answer(self, wire: Connection) -> str:
        who = f"rank {self._wires.index(wire)} of {SIZE}"
        try:
            answer: str | Exception = wire.recv()
        except (EOFError, ConnectionResetError):
            raise AssertionError(f"the process of {who} ended") from None
        if isinstance(answer, Exception):
            raise AssertionError(f"{who}: {answer}")
        return f"{who}: {answer}" if answer else ""


def without_indices(device: str) -> str:
    """The first devices of a platform: its name, and its own words where there are some."""
    choice = DeviceChoice.parse(device)
    return f"{choice.name}:{','.join(choice.words)}" if choice.words else choice.name


def _free_port() -> int:
    with socket.socket() as one:
        one.bind((LOOPBACK, 0))
        return int(one.getsockname()[1])


def _follow(rank: _Rank, wire: Connection) -> None:
    """The process."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        _play_all(rank, wire)
    except EOFError:
        pass
    except BaseException as error:
        wire.send(RuntimeError(f"{type(error).__name__}: {error}"))
        wire.close()
    os._exit(0)


def _play_all(rank: _Rank, wire: Connection) -> None:
    os.environ.update(rank.environment)
    spec = rank.origin.spec()
    for name, value in spec.environment(rank.number).items():
        os.environ.setdefault(name, value)  # before torch is imported
    platform = spec.create(resolve(rank.settings, spec.defaults()).config, rank.number)
    from engine.testing.checks.collectives import Ranks, play
    from engine.testing.checks.numbers import DTYPES

    group = platform.communicator(tuple(range(SIZE)))
    assert (group.rank, group.size) == (rank.number, SIZE), (
        f"in the group of both it is {group.rank} of {group.size}"
    )
    group.barrier()
    wire.send("")
    while True:
        name, dtype = wire.recv()
        wire.send(play(name, Ranks(platform, DTYPES[dtype]), group))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
