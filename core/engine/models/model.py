"""What the model runner asks of a model."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor

from engine.platform.attention import AttentionSpec

#: (layer, q[T, H, D], k[T, K, D], v[T, K, D]) -> [T, H, D]: stores k and v in the layer's KV cache,
#: then attends causally, each token within its own request.
Attend: TypeAlias = Callable[[int, Tensor, Tensor, Tensor], Tensor]


class Model(ABC):
    """T tokens of a step lie side by side, whichever requests they belong to.

    Heads, and so the specs, are this rank's own; hidden states and logits are whole on every rank.
    """

    num_bytes: int  # of this rank's weights, as they were loaded

    @abstractmethod
    def attention_specs(self) -> list[AttentionSpec]:
        """One a layer that calls `attend`; its place is the layer's number there."""

    @abstractmethod
    def forward(self, input_ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """[T] int64 each -> hidden states after the final norm, [T, hidden]."""

    @abstractmethod
    def logits(self, hidden: Tensor) -> Tensor:
        """[M, hidden] -> [M, vocab] float32."""
