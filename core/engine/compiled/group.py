"""Collectives between processes, of one machine or several, through any backend that torch has.

The process group is this object's own: torch's default group, which the program around the engine
may use for itself, is left alone. Only the members of a group need to make it.
"""

import os
from collections import Counter
from datetime import timedelta
from itertools import count
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import Tensor
from torch._C._distributed_c10d import (
    BarrierOptions,
    _DistributedBackendOptions,
    _register_process_group,
    _resolve_process_group,
    _unregister_process_group,
)
from torch.distributed import (  # type: ignore[attr-defined]  # public, but not re-exported
    Backend,
    FileStore,
    PrefixStore,
    ProcessGroup,
    ProcessGroupGloo,
    Store,
    TCPStore,
)
from torch.distributed.distributed_c10d import GroupName

from engine.errors import ConfigError, UnsupportedError
from engine.platform import Communicator, SoloCommunicator

#: Longer than loading the weights of a large model from a slow disk on another rank.
TIMEOUT_S = 1800.0


class Groups:
    """Makes the groups of one rank, which meet where MASTER_ADDR and MASTER_PORT say."""

    def __init__(self, rank: int, *, backend: str = "gloo", device: str = "cpu") -> None:
        self._rank = rank
        self._backend = backend
        self._device = device
        self._made: Counter[tuple[int, ...]] = Counter()
        self._open: list[Communicator] = []

    def join(self, ranks: tuple[int, ...]) -> Communicator:
        """
        Raises:
            UnsupportedError: there are several ranks, and no address where they could meet.
        """
        if len(ranks) == 1:
            return SoloCommunicator()
        address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
        if not address or not port:
            raise UnsupportedError(
                f"ranks {ranks} need a place to meet; set MASTER_ADDR and MASTER_PORT to the same"
                " free port for each of them"
            )
        made = GroupCommunicator(
            f"tcp://{address}:{port}",
            self._rank,
            ranks,
            backend=self._backend,
            device=self._device,
            instance=self._made[ranks],
        )
        self._made[ranks] += 1
        self._open.append(made)
        return made

    def close(self) -> None:
        """Leave them all. Safe to call twice."""
        while self._open:
            self._open.pop().close()


class GroupCommunicator(Communicator):
    """The group of `ranks`; methods count its members from 0 in that order.

    Args:
        backend: "gloo", or a name given to `torch.distributed.Backend.register_backend`.
        device: the type of the tensors, as torch spells it.
        init_method: where the processes meet: "tcp://HOST:PORT", at which rank 0 of all, member of
            this group or not, has or will have such an object; or "file:///PATH" of a file that all
            can write and that does not exist before.
        rank: this process's own, among all.
        ranks: the members, in the same order everywhere.
        instance: tells groups of the same ranks apart; the same number everywhere.
        timeout_s: seconds after which a collective that not all members reached is an error.

    Raises:
        ConfigError: `rank` is no member, `init_method` is neither of the two, or there is no such
            backend.
        RuntimeError: not all members came to the place in time; so in any method when one left.
    """

    def __init__(
        self,
        init_method: str,
        rank: int,
        ranks: tuple[int, ...],
        *,
        backend: str = "gloo",
        device: str = "cpu",
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
        store = PrefixStore(name, self._store)
        group = ProcessGroup(store, self.rank, self.size)
        made, kind = _make(backend, name, store, ranks, self.rank, timeout)
        group._set_default_backend(kind)
        self._device = torch.device(device)
        group._register_backend(self._device, kind, made)
        self._group: ProcessGroup | None = group
        self._wanted_name = f"engine-{'-'.join(map(str, ranks))}-{instance}"
        self._name: GroupName | None = None

    @property
    def name(self) -> GroupName:
        """By which torch's functional collectives, those that graphs hold, find the group.

        The same in every process, and so are the graphs; but that a second engine of one process,
        whose ranks are the same, has another.
        """
        if self._name is None:
            self._name = _register(self._wanted_name, self._joined)
        return self._name

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
        options = BarrierOptions()
        options.device = self._device  # torch looks for the host's backend if nothing is said
        self._joined.barrier(options).wait()

    def close(self) -> None:
        if self._name is not None:
            _unregister_process_group(self._name)
        self._group = self._store = self._name = None

    @property
    def _joined(self) -> ProcessGroup:
        if self._group is None:
            raise ValueError("this communicator was closed")
        return self._group


def _register(wanted: str, group: ProcessGroup) -> GroupName:
    """Under that name, or the first of those with a number that is free."""
    for number in count(1):
        name = GroupName(wanted if number == 1 else f"{wanted}-{number}")
        try:
            _resolve_process_group(name)
        except RuntimeError:  # there is no such group
            _register_process_group(name, group)
            return name
    raise AssertionError("there is always another number")


def _make(
    backend: str, name: str, store: Store, ranks: tuple[int, ...], rank: int, timeout: timedelta
) -> "tuple[Any, ProcessGroup.BackendType]":
    size = len(ranks)
    if backend == "gloo":
        made = ProcessGroupGloo(store, rank, size, timeout)
        return made, ProcessGroup.BackendType.GLOO
    plugin = Backend._plugins.get(backend.upper())
    if plugin is None:
        known = ", ".join(["gloo", *(name.lower() for name in Backend._plugins)])
        raise ConfigError(f"torch has no distributed backend {backend!r}; it has {known}")
    if not plugin.extended_api:
        return plugin.creator_fn(store, rank, size, timeout), ProcessGroup.BackendType.CUSTOM
    options = _DistributedBackendOptions()
    options.store, options.timeout = store, timeout
    options.group_rank, options.group_size = rank, size
    options.group_id = name
    options.global_ranks_in_group = list(ranks)
    return plugin.creator_fn(options, None), ProcessGroup.BackendType.CUSTOM


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
