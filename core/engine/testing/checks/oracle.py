"""Judges what a runner answered. Without torch."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from engine.batch import Logprobs


class Oracle(ABC):
    """Knows the model's answers, independently of the engine."""

    vocab_size: int

    @abstractmethod
    def error(
        self,
        prompt: Sequence[int],
        output: Sequence[int],
        logprobs: Sequence[Logprobs],
        prompt_logprobs: Sequence[Logprobs] = (),
    ) -> float:
        """How wrong the answer is, in natural-log probability. 0 is right.

        The largest of: how much less likely a greedy token is than the most likely one after the
        same tokens; how far a reported logprob is from the true one.
        """


class CountingOracle(Oracle):
    """Of a device that computes nothing: the token after n is n + 1."""

    vocab_size = 2**20

    def error(
        self,
        prompt: Sequence[int],
        output: Sequence[int],
        logprobs: Sequence[Logprobs],
        prompt_logprobs: Sequence[Logprobs] = (),
    ) -> float:
        expected = [prompt[-1] + 1 + i for i in range(len(output))]
        said = all(one.logprob == 0.0 for one in logprobs)
        return 0.0 if list(output) == expected and said else float("inf")
