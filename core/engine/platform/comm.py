"""Collectives between the ranks of one group."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class Communicator(ABC):
    """Every call is collective: all ranks of the group make it, in the same order.

    Ranks are numbered from 0 within the group, in the order in which `Platform.communicator` was
    given them. Results are returned; an implementation may work in place and return its argument.
    """

    rank: int
    size: int

    @abstractmethod
    def all_reduce(self, x: "Tensor") -> "Tensor":
        """The sum over ranks; any shape."""

    @abstractmethod
    def all_gather(self, x: "Tensor", dim: int = -1) -> "Tensor":
        """Every rank's x, concatenated along `dim` in rank order."""

    @abstractmethod
    def reduce_scatter(self, x: "Tensor", dim: int = -1) -> "Tensor":
        """This rank's share of the sum: `dim` is divided by `size`."""

    @abstractmethod
    def all_to_all(self, x: "Tensor", send: list[int], receive: list[int]) -> "Tensor":
        """Rows send[r] go to rank r, rows receive[r] come from it; [sum(send), …] in."""

    @abstractmethod
    def broadcast(self, x: "Tensor", source: int = 0) -> "Tensor": ...

    @abstractmethod
    def send(self, x: "Tensor", target: int) -> None: ...

    @abstractmethod
    def receive(self, x: "Tensor", source: int) -> "Tensor":
        """Fill and return `x`."""

    @abstractmethod
    def barrier(self) -> None: ...

    def close(self) -> None:
        """Leave the group. Safe to call twice."""


class SoloCommunicator(Communicator):
    """One rank: every collective is the identity."""

    rank, size = 0, 1

    def all_reduce(self, x: "Tensor") -> "Tensor":
        return x

    def all_gather(self, x: "Tensor", dim: int = -1) -> "Tensor":
        return x

    def reduce_scatter(self, x: "Tensor", dim: int = -1) -> "Tensor":
        return x

    def all_to_all(self, x: "Tensor", send: list[int], receive: list[int]) -> "Tensor":
        return x

    def broadcast(self, x: "Tensor", source: int = 0) -> "Tensor":
        return x

    def send(self, x: "Tensor", target: int) -> None:
        raise ValueError("a group of one rank has no other rank to send to")

    def receive(self, x: "Tensor", source: int) -> "Tensor":
        raise ValueError("a group of one rank has no other rank to receive from")

    def barrier(self) -> None:
        return None
