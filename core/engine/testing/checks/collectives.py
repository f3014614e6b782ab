"""Each collective against the exact result. Run by two ranks at once, in processes of their own.

Every function gives what this rank got and what it should have got, pair by pair. The numbers are
small whole ones, so sums of them are exact in every dtype.
"""

import math
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from engine.platform import Communicator, Platform

#: Odd ones, and one of more elements than a message usually has.
SHAPES = ((1,), (3,), (5, 7), (3, 1, 9), (70_001,))
#: Like them, but one dimension can be divided by two.
EVEN_SHAPES = ((2,), (6, 7), (3, 2, 9), (70_002,))

PAUSE_S = 0.3

Pairs = Iterator[tuple[Tensor, Tensor]]


class Ranks:
    """This rank, the group of both, and tensors that each rank can make for the other, too."""

    def __init__(self, platform: Platform, dtype: torch.dtype) -> None:
        self.platform = platform
        self.dtype = dtype

    def numbers(self, rank: int, shape: tuple[int, ...]) -> Tensor:
        """The rank's own, on the host."""
        found = (torch.arange(math.prod(shape)) * 7 + 13 * rank) % 50 - 25
        return found.view(shape).to(self.dtype)

    def here(self, rank: int, shape: tuple[int, ...]) -> Tensor:
        return self.numbers(rank, shape).to(self.platform.device)

    def both(self, shape: tuple[int, ...]) -> list[Tensor]:
        return [self.numbers(rank, shape) for rank in range(2)]


def all_reduce(ranks: Ranks, group: Communicator) -> Pairs:
    for shape in SHAPES:
        total = sum(ranks.both(shape), torch.zeros(shape, dtype=ranks.dtype))
        yield group.all_reduce(ranks.here(group.rank, shape)), total
    gaps = ranks.here(group.rank, (6, 8))[:, ::2]  # a view, as a slice of a fused projection is
    yield group.all_reduce(gaps), sum(ranks.both((6, 8)))[:, ::2]  # type: ignore[index]


def all_gather(ranks: Ranks, group: Communicator) -> Pairs:
    for shape in SHAPES:
        for dim in {0, -1, len(shape) // 2}:
            mine = ranks.here(group.rank, shape)
            yield group.all_gather(mine, dim), torch.cat(ranks.both(shape), dim)


def reduce_scatter(ranks: Ranks, group: Communicator) -> Pairs:
    for shape in EVEN_SHAPES:
        dim = next(i for i, size in enumerate(shape) if size % 2 == 0)
        total = sum(ranks.both(shape), torch.zeros(shape, dtype=ranks.dtype))
        found = group.reduce_scatter(ranks.here(group.rank, shape), dim)
        yield found, total.chunk(2, dim)[group.rank]


def all_to_all(ranks: Ranks, group: Communicator) -> Pairs:
    for counts in (((1, 3), (4, 0)), ((0, 5), (7, 2)), ((2, 2), (2, 2))):
        send, receive = list(counts[group.rank]), [row[group.rank] for row in counts]
        parts = [ranks.numbers(rank, (sum(counts[rank]), 5)) for rank in range(2)]
        expected = [torch.split(parts[rank], list(counts[rank]))[group.rank] for rank in range(2)]
        mine = parts[group.rank].to(ranks.platform.device)
        yield group.all_to_all(mine, send, receive), torch.cat(expected)


def broadcast(ranks: Ranks, group: Communicator) -> Pairs:
    for shape in SHAPES:
        for source in range(2):
            found = group.broadcast(ranks.here(group.rank, shape), source)
            yield found, ranks.numbers(source, shape)


def send_and_receive(ranks: Ranks, group: Communicator) -> Pairs:
    for shape in SHAPES:
        for source in range(2):
            if group.rank == source:
                group.send(ranks.here(source, shape), 1 - source)
            else:
                empty = torch.zeros(shape, dtype=ranks.dtype, device=ranks.platform.device)
                yield group.receive(empty, source), ranks.numbers(source, shape)


def barrier(ranks: Ranks, group: Communicator) -> Pairs:
    """Nobody passes before the last one has come; each comes late once."""
    for late in range(2):
        group.barrier()
        began = time.monotonic()
        if group.rank == late:
            time.sleep(PAUSE_S)
        group.barrier()
        waited = time.monotonic() - began
        yield torch.tensor(waited >= 0.8 * PAUSE_S), torch.tensor(True)


def groups_of_their_own(ranks: Ranks, group: Communicator) -> Pairs:
    """Members are numbered in the order given; two groups of the same ranks do not disturb."""
    turned = ranks.platform.communicator((1, 0))
    yield torch.tensor([turned.rank, turned.size]), torch.tensor([1 - group.rank, 2])
    again = ranks.platform.communicator((0, 1))
    shape = (3, 5)
    mine = ranks.numbers(group.rank, shape).to(ranks.platform.device)
    here = [ranks.numbers(rank, shape) for rank in range(2)]
    for _ in range(2):
        yield turned.all_gather(mine.clone(), 0), torch.cat(here[::-1], 0)
        yield again.all_gather(mine.clone(), 0), torch.cat(here, 0)
    turned.close()
    turned.close()
    yield again.all_reduce(mine.clone()), here[0] + here[1]
    again.close()


PLAYS: dict[str, Callable[[Ranks, Communicator], Pairs]] = {
    "all-reduce": all_reduce,
    "all-gather": all_gather,
    "reduce-scatter": reduce_scatter,
    "all-to-all": all_to_all,
    "broadcast": broadcast,
    "send-and-receive": send_and_receive,
    "barrier": barrier,
    "groups": groups_of_their_own,
}


def play(name: str, ranks: Ranks, group: Communicator) -> str:
    """The first result that is not exactly right; nothing when all are.

    The rest is computed all the same: the other rank counts on it.
    """
    wrong = ""
    for number, (found, expected) in enumerate(PLAYS[name](ranks, group)):
        ranks.platform.synchronize()
        if not torch.equal(found.cpu(), expected):
            what = f"{name}, result {number}: {_describe(found)} is not {_describe(expected)}"
            wrong = wrong or what
    return wrong


def _describe(x: Tensor) -> str:
    numbers = ", ".join(f"{one:g}" for one in x.flatten()[:4].tolist())
    return f"[{numbers}{', …' if x.numel() > 4 else ''}] of {tuple(x.shape)} {x.dtype}"
