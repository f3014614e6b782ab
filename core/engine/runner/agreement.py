"""What several ranks must have equal, lest they compute different things and wait for ever."""

import torch
from torch import Tensor

from engine.platform import Communicator


class Agreement:
    """Between the ranks of `communicator`; every call is collective. Alone, one agrees at once.

    `device`: where the communicator's tensors are.
    """

    def __init__(self, communicator: Communicator, device: str) -> None:
        self._communicator = communicator
        self._device = device

    def least(self, number: int) -> int:
        """The least of all ranks' numbers, below 2^31."""
        if self._communicator.size == 1:
            return number
        mine = torch.tensor([number], dtype=torch.int32, device=self._device)
        every: list[int] = self._communicator.all_gather(mine).tolist()  # the host finds the least
        return min(every)

    def all(self, condition: bool) -> bool:
        """Whether every rank says so."""
        return self.least(int(condition)) == 1

    def tokens(self, tokens_M: Tensor) -> Tensor:
        """Rank 0's tokens, int64, in place of those of this rank.

        Ranks have the same logits but for rounding: a different number of threads, or another
        device, may sum in another order. A token that differed would be in one rank's context only.
        """
        if self._communicator.size == 1:
            return tokens_M
        sent = tokens_M.to(self._device, torch.int32)
        return self._communicator.broadcast(sent).to(tokens_M)
