"""Runs a forward pass: captured, compiled or eager."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

from engine.platform.attention import StepMetadata
from engine.platform.shapes import Shape

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class StepInputs:
    """Everything that differs from step to step. T tokens, N requests, on the device."""

    input_ids: "Tensor"  # [T] int64
    positions: "Tensor"  # [T] int64
    metadata: StepMetadata


Forward: TypeAlias = "Callable[[StepInputs], Tensor]"  # hidden states [T, hidden]
Logits: TypeAlias = "Callable[[Tensor], Tensor]"  # [N, hidden] to float32 [N, vocabulary]


class MakeInputs(Protocol):
    """A step that nobody asked for; it touches no live KV.

    It has `num_requests` equal prompts of `num_tokens` in all; on a device with static shapes it is
    of the `shape` asked for, or of the smallest that fits.
    """

    def __call__(
        self, num_requests: int, num_tokens: int, shape: Shape | None = None
    ) -> StepInputs: ...


class GraphRunner(ABC):
    #: Programs made so far. After `warm_up` it should not rise: a compile in a step is slow.
    num_compiled: int = 0

    @abstractmethod
    def warm_up(self, forward: Forward, make_inputs: MakeInputs) -> None:
        """Before the first request."""

    @abstractmethod
    def run(self, forward: Forward, inputs: StepInputs) -> "Tensor": ...

    def will_project(self, logits: Logits, vocab_size: int) -> None:
        """What makes logits of the rows that `run` returns: a program of a step may have them too.
        Told before `reserve`, on devices without static shapes."""

    def reserve(self, activations: int) -> int:
        """Bytes that programs will hold, beside what a step needs for a moment (`activations`).

        Asked before the KV cache is sized, and left out of it.
        """
        return 0

    def project(self, logits: Logits, hidden: "Tensor", rows: "Tensor") -> "Tensor":
        """Logits of some rows of what `run` returned. Asked on devices with static shapes, where
        `rows` has one entry a request of the step's shape."""
        return logits(hidden.index_select(0, rows))

    def project_all(self, logits: Logits, hidden: "Tensor") -> "Tensor":
        """Logits of all rows of what `run` returned last. Asked on devices without static shapes;
        good until the next `run`, for work that is started before it."""
        return logits(hidden)

    def report(self) -> str:
        """Lines for people: which programs are made, or will be, and why others are not."""
        return ""

    def close(self) -> None:
        """Drop captured programs. Safe to call twice."""


class EagerRunner(GraphRunner):
    def warm_up(self, forward: Forward, make_inputs: MakeInputs) -> None:
        forward(make_inputs(1, 1))

    def run(self, forward: Forward, inputs: StepInputs) -> "Tensor":
        return forward(inputs)
