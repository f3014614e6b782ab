"""Attention of a whole model: backends and caches by layer, and plans by step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from engine.platform import AttentionBackend, KVCache, Packed, Prologue, StepInputs


@dataclass(slots=True)
class Layers:
    """Attention of the whole model: layer i uses backend `backends[i]` and `caches[i]`."""

    backends: list[AttentionBackend]
    caches: list[KVCache]

    def attend(self, inputs: StepInputs) -> "StepAttention":
        plans = {one: one.plan(inputs.metadata) for one in dict.fromkeys(self.backends)}
        return StepAttention(self, plans)

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        self.caches = [
            backend.copy_blocks(cache, pairs)
            for backend, cache in zip(self.backends, self.caches, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class StepAttention:
    """What a model calls once a layer in one step."""

    layers: Layers
    plans: dict[AttentionBackend, Any]

    def __call__(self, layer: int, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor) -> Tensor:
        backend, caches = self.layers.backends[layer], self.layers.caches
        out_THD, caches[layer] = backend.forward(
            q_THD, k_TKD, v_TKD, caches[layer], self.plans[backend]
        )
        return out_THD

    def packed(self, layer: int, packed: Packed, prologue: Prologue) -> Tensor:
        backend, caches = self.layers.backends[layer], self.layers.caches
        out_THD, caches[layer] = backend.forward_packed(
            packed, prologue, caches[layer], self.plans[backend]
        )
        return out_THD
