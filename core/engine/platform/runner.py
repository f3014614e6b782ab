"""The narrow seam: a batch goes in, tokens come out."""

from abc import ABC, abstractmethod
from collections.abc import Callable

from engine.batch import Batch, StepOutput


class Pending:
    """A step in flight. `result` waits for its tokens to reach the host."""

    def __init__(self, batch: Batch, wait: Callable[[], StepOutput]) -> None:
        self.batch = batch
        self._wait = wait

    def result(self) -> StepOutput:
        return self._wait()


class Runner(ABC):
    """Remembers each admitted request (its tokens, block table, last sampled token) until it is
    released, so that a step may be started before the tokens of the one before were read."""

    @property
    def num_compiled(self) -> int:
        """Programs made so far, for devices that compile."""
        return 0

    @abstractmethod
    def load(self) -> int:
        """Load the weights; return how many KV blocks fit beside them."""

    @abstractmethod
    def execute(self, batch: Batch) -> Pending:
        """Start one step and return at once where the device allows it."""

    @abstractmethod
    def reset(self) -> None:
        """Forget every request, after a step that failed."""

    def report(self) -> str:
        """Lines for people about the memory the loaded model takes."""
        return ""

    def close(self) -> None:
        """Give everything back. Safe to call twice."""
