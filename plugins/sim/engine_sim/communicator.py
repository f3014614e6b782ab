"""Collectives between devices: gloo moves the numbers, the clock counts the link."""

from torch import Tensor

from engine.platform import Communicator
from engine_sim.chip import Chip
from engine_sim.tensor import SimTensor, wrap


class SimCommunicator(Communicator):
    """A group of this rank's device and others.

    Args:
        chip: this rank's device.
        host: the same group, for tensors of the host.

    Raises, from any collective:
        DeviceLostError: this rank's device is lost.
        RuntimeError: another rank left.
    """

    def __init__(self, chip: Chip, host: Communicator) -> None:
        self.rank = host.rank
        self.size = host.size
        self._chip = chip
        self._host = host

    def all_reduce(self, x: Tensor) -> Tensor:
        """Over the link: a reduce-scatter and an all-gather in a ring."""
        mine = self._begin(x, 2 * (self.size - 1) / self.size)
        return self._give(self._host.all_reduce(mine), x)

    def all_gather(self, x: Tensor, dim: int = -1) -> Tensor:
        return self._give(self._host.all_gather(self._begin(x, self.size - 1), dim), x)

    def reduce_scatter(self, x: Tensor, dim: int = -1) -> Tensor:
        mine = self._begin(x, (self.size - 1) / self.size)
        return self._give(self._host.reduce_scatter(mine, dim), x)

    def all_to_all(self, x: Tensor, send: list[int], receive: list[int]) -> Tensor:
        return self._give(self._host.all_to_all(self._begin(x, 1), send, receive), x)

    def broadcast(self, x: Tensor, source: int = 0) -> Tensor:
        return self._give(self._host.broadcast(self._begin(x, 1), source), x)

    def send(self, x: Tensor, target: int) -> None:
        self._host.send(self._begin(x, 1), target)

    def receive(self, x: Tensor, source: int) -> Tensor:
        self._host.receive(self._begin(x, 1), source)
        return x

    def barrier(self) -> None:
        self._chip.check_present()
        self._chip.clock.transfer(0)
        self._host.barrier()

    def close(self) -> None:
        self._host.close()

    def _begin(self, x: Tensor, share: float) -> Tensor:
        """The numbers of x, of which `share` goes over the link."""
        if not isinstance(x, SimTensor) or x.chip is not self._chip:
            raise ValueError(f"a collective of {self._chip.name} was given a tensor of {x.device}")
        self._chip.check_present()
        self._chip.clock.transfer(share * x.nbytes)
        return x.data_on_host

    def _give(self, result: Tensor, x: Tensor) -> Tensor:
        """`result` as the device's; x itself where it was changed in place."""
        assert isinstance(x, SimTensor)
        return x if result is x.data_on_host else wrap(result, self._chip)
