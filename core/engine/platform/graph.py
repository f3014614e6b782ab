"""Runs a forward pass: captured, compiled or eager."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from engine.platform.attention import StepMetadata

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class StepInputs:
    """Everything that differs from step to step. T tokens, N requests, on the device."""

    input_ids: "Tensor"  # [T] int64
    positions: "Tensor"  # [T] int64
    metadata: StepMetadata


Forward: TypeAlias = "Callable[[StepInputs], Tensor]"  # hidden states [T, hidden]


class GraphRunner(ABC):
    @abstractmethod
    def warm_up(self, forward: Forward, make_inputs: "Callable[[int, int], StepInputs]") -> None:
        """Before the first request. `make_inputs(num_requests, num_tokens)` touches no live KV."""

    @abstractmethod
    def run(self, forward: Forward, inputs: StepInputs) -> "Tensor": ...

    def close(self) -> None:
        """Drop captured programs. Safe to call twice."""


class EagerRunner(GraphRunner):
    def warm_up(self, forward: Forward, make_inputs: "Callable[[int, int], StepInputs]") -> None:
        forward(make_inputs(1, 1))

    def run(self, forward: Forward, inputs: StepInputs) -> "Tensor":
        return forward(inputs)
