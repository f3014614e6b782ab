"""What the model runner asks of a model."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from engine.errors import UnsupportedError
from engine.platform.attention import AttentionSpec, Packed, Prologue


class Attend(Protocol):
    """Attention of one step. Results are [T, H, D]."""

    def __call__(self, layer: int, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor) -> Tensor:
        """Stores k and v in the layer's KV cache, then attends causally, each token within its own
        request."""

    def packed(self, layer: int, packed: Packed, prologue: Prologue) -> Tensor:
        """The same after the prologue; for layers that `Model.fuse` named, where there are any."""
        raise UnsupportedError(f"layer {layer} was not fused with its prologue {prologue}")


class Model(ABC):
    """T tokens of a step lie side by side, whichever requests they belong to.

    Heads, and so the specs, are this rank's own; hidden states and logits are whole on every rank.
    """

    num_bytes: int  # of this rank's weights, as they were loaded

    @abstractmethod
    def attention_specs(self) -> list[AttentionSpec]:
        """One a layer that calls `attend`; its place is the layer's number there."""

    def prologues(self) -> Sequence[Prologue | None]:
        """What each layer does before it attends, where the device may do it in its place."""
        return [None] * len(self.attention_specs())

    def fuse(self, layers: Sequence[bool]) -> None:
        """Leave the prologues of these layers to `Attend.packed`. Before the first step."""

    @abstractmethod
    def forward(self, input_ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """[T] int64 each -> hidden states after the final norm, [T, hidden]."""

    @abstractmethod
    def logits(self, hidden: Tensor) -> Tensor:
        """[M, hidden] -> [M, vocab] float32."""
