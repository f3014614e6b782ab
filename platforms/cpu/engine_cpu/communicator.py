"""Collectives between processes, of one machine or several, through gloo.

The process group is this object's own: torch's default group, which the program around the engine
may use for itself, is left alone. Only the members of a group need to make it.
"""

from datetime import timedelta
from urllib.parse import urlsplit

import torch
from torch import Tensor
from torch.distributed import (  # type: ignore[attr-defined]  # public, but not re-exported
    FileStore,
    PrefixStore,
    ProcessGroup,
    ProcessGroupGloo,
    Store,
    TCPStore,
)

from engine.errors import ConfigError
from engine.platform import Communicator

#: Longer than loading the weights of a large model from a slow disk on another rank.
TIMEOUT_S = 1800.0


class GlooCommunicator(Communicator):
    """The group of `ranks`; methods count its members from 0 in that order.

    Args:
        init_method: where the processes meet: "tcp://HOST:PORT", at which rank 0 of all, member of
            this group or not, has or will have such an object; or "file:///PATH" of a file that all
            can write and that does not exist before.
        rank: this process's own, among all.
        ranks: the members, in the same order everywhere.
        instance: tells groups of the same ranks apart; the same number everywhere.
        timeout_s: seconds after which a collective that not all members reached is an error.

    Raises:
        ConfigError: `rank` is no member, or `init_method` is neither of the two.
        RuntimeError: not all members came to the place in time; so in any method when one left.
    """

    def __init__(
        self,
        init_method: str,
        rank: int,
        ranks: tuple[int, ...],
        *,
        instance: int = 0,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        if rank not in ranks:
            raise ConfigError(f"rank {rank} cannot join the group of ranks {ranks}: not a member")
        self.rank = ranks.index(rank)
        self.size = len(ranks)
        timeout = timedelta(seconds=timeout_s)
        # Kept: rank 0's store is the one that the others talk to.
        self._store: Store | None = _meet(init_method, rank, timeout)
        name = f"{'-'.join(map(str, ranks))}/{instance}"
        self._group: ProcessGroup | None = _join(
            PrefixStore(name, self._store), self.rank, self.size, timeout
        )

    def all_reduce(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        self._joined.allreduce([x]).wait()
        return x

    def all_gather(self, x: Tensor, dim: int = -1) -> Tensor:
        parts = [
            torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(self.size)
        ]
        self._joined.allgather([parts], [x.contiguous()]).wait()
        return torch.cat(parts, dim)

    def reduce_scatter(self, x: Tensor, dim: int = -1) -> Tensor:
        parts = [part.contiguous() for part in x.chunk(self.size, dim)]
        if len(parts) != self.size or parts[0].shape != parts[-1].shape:
            raise ValueError(f"{tuple(x.shape)} cannot be divided by {self.size} along {dim}")
        result = torch.empty_like(parts[0])
        self._joined.reduce_scatter([result], [parts]).wait()
        return result

    def all_to_all(self, x: Tensor, send: list[int], receive: list[int]) -> Tensor:
        result = x.new_empty((sum(receive), *x.shape[1:]))
        self._joined.alltoall_base(result, x.contiguous(), receive, send).wait()
        return result

    def broadcast(self, x: Tensor, source: int = 0) -> Tensor:
        x = x.contiguous()
        self._joined.broadcast(x, source).wait()
        return x

    def send(self, x: Tensor, target: int) -> None:
        self._joined.send([x.contiguous()], target, 0).wait()

    def receive(self, x: Tensor, source: int) -> Tensor:
        whole = x.contiguous()
        self._joined.recv([whole], source, 0).wait()
        return x if whole is x else x.copy_(whole)

    def barrier(self) -> None:
        self._joined.barrier().wait()

    def close(self) -> None:
        self._group = self._store = None

    @property
    def _joined(self) -> ProcessGroup:
        if self._group is None:
            raise ValueError("this communicator was closed")
        return self._group


def _join(store: Store, rank: int, size: int, timeout: timedelta) -> ProcessGroup:
    group = ProcessGroup(store, rank, size)
    group._set_default_backend(ProcessGroup.BackendType.GLOO)
    gloo = ProcessGroupGloo(store, rank, size, timeout)
    group._register_backend(torch.device("cpu"), ProcessGroup.BackendType.GLOO, gloo)
    return group


def _meet(init_method: str, rank: int, timeout: timedelta) -> Store:
    place = urlsplit(init_method)
    if place.scheme == "file" and place.path:
        return FileStore(place.path)
    if place.scheme == "tcp" and place.hostname and place.port:
        return TCPStore(
            place.hostname,
            place.port,
            is_master=rank == 0,
            timeout=timeout,
            wait_for_workers=False,
            multi_tenant=True,  # a second group of this process finds the first one's store
        )
    raise ConfigError(
        f"ranks meet at tcp://HOST:PORT or file:///PATH, got init_method {init_method!r}"
    )
