"""Collectives that a program may hold: torch's functional ones."""

import torch
from torch import Tensor

from engine.compiled.group import GroupCommunicator
from engine.platform import Communicator


class ProgramCommunicator(Communicator):
    """The group of `joined`. What a model's layers call is part of a step's program, where the call
    of a process group would break the graph; the rest happens between steps, as ever."""

    def __init__(self, joined: GroupCommunicator) -> None:
        # Registers the operations below. Slow, and one process alone needs none of them.
        import torch.distributed._functional_collectives  # noqa: F401

        self.rank = joined.rank
        self.size = joined.size
        self._joined = joined
        self._name = joined.name

    def all_reduce(self, x: Tensor) -> Tensor:
        return _wait(torch.ops._c10d_functional.all_reduce(x.contiguous(), "sum", self._name))

    def all_gather(self, x: Tensor, dim: int = -1) -> Tensor:
        gather = torch.ops._c10d_functional.all_gather_into_tensor
        return torch.cat(_wait(gather(x.contiguous(), self.size, self._name)).chunk(self.size), dim)

    def reduce_scatter(self, x: Tensor, dim: int = -1) -> Tensor:
        parts = x.chunk(self.size, dim)
        if len(parts) != self.size or parts[0].shape != parts[-1].shape:
            raise ValueError(f"{tuple(x.shape)} cannot be divided by {self.size} along {dim}")
        scatter = torch.ops._c10d_functional.reduce_scatter_tensor
        return _wait(scatter(torch.cat(parts), "sum", self.size, self._name))

    def all_to_all(self, x: Tensor, send: list[int], receive: list[int]) -> Tensor:
        return self._joined.all_to_all(x, send, receive)

    def broadcast(self, x: Tensor, source: int = 0) -> Tensor:
        return self._joined.broadcast(x, source)

    def send(self, x: Tensor, target: int) -> None:
        self._joined.send(x, target)

    def receive(self, x: Tensor, source: int) -> Tensor:
        return self._joined.receive(x, source)

    def barrier(self) -> None:
        self._joined.barrier()

    def close(self) -> None:
        self._joined.close()


def _wait(started: Tensor) -> Tensor:
    result: Tensor = torch.ops._c10d_functional.wait_tensor(started)
    return result
