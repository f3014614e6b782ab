"""What backends of attention share that keep keys and values in this package's cache.

T tokens, N requests, H query heads, K key/value heads, D head dim, S tokens a block, P blocks.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from engine.platform import AttentionBackend, AttentionSpec, KVLayout, Packed, Prologue
from engine_triton.architecture import Architecture
from engine_triton.attention import store
from engine_triton.attention.blocks import BlockCopy, pairs_on
from engine_triton.attention.layout import (
    DTYPES,
    KV_DTYPES,
    KVFormat,
    block_shape,
    contiguous_heads,
)


class StepPlan(Protocol):
    """What is planned of a step, whoever attends."""

    @property
    def slots(self) -> Tensor:
        """[T] int64: where each token's keys and values are stored."""


class PagedCache(AttentionBackend):
    """A cache of one layer is one tensor [P, 2, K, S, D], updated in place; fp8 is kept as bytes.

    It is written, with or without a prologue, and its blocks are copied. A subclass says how a step
    is planned, and attends. No method waits for the device.

    Args:
        architecture: of the device; that of Triton's active driver, if none is given.
    """

    def __init__(
        self, spec: AttentionSpec, device: str, architecture: Architecture | None = None
    ) -> None:
        super().__init__(spec, device)
        self._architecture = architecture or Architecture.current()
        self._form = KVFormat.of(spec, self._architecture)
        self._store = store.Store(spec, self._architecture, self._form)
        self._copy = BlockCopy(self._architecture)
        self._prologues: dict[Prologue, store.Prologue] = {}

    @classmethod
    def unsupported(cls, spec: AttentionSpec) -> str | None:
        if spec.dtype not in DTYPES:
            return f"dtype {spec.dtype!r} is not one of {', '.join(DTYPES)}"
        if spec.kv_dtype not in KV_DTYPES:
            return f"kv_dtype {spec.kv_dtype!r} is not one of {', '.join(KV_DTYPES)}"
        sizes = (spec.num_heads, spec.num_kv_heads, spec.head_dim, spec.block_size)
        if min(sizes) < 1:
            return f"heads, head_dim and block_size must be at least 1, got {sizes}"
        if spec.num_heads % spec.num_kv_heads:
            return f"{spec.num_heads} heads cannot share {spec.num_kv_heads} key/value heads evenly"
        if spec.window is not None and spec.window < 1:
            return f"window must be at least 1, got {spec.window}"
        if spec.soft_cap is not None and spec.soft_cap <= 0:
            return f"soft_cap must be more than 0, got {spec.soft_cap}"
        return None

    @abstractmethod
    def attend(self, q_THD: Tensor, cache: Tensor, plan: Any) -> Tensor:
        """[T, H, D]: of queries whose own keys and values are in the cache already. A head's
        numbers lie side by side in `q_THD`."""

    def kv_layout(self) -> KVLayout:
        shape = block_shape(self.spec)
        count = shape[0] * shape[1] * shape[2] * shape[3]
        return KVLayout(shape, self.spec.kv_dtype, count * self._form.memory.itemsize)

    def allocate(self, num_blocks: int) -> Tensor:
        """Zeros: rows that are padding read block 0, whoever has it, and should meet no NaN."""
        shape = block_shape(self.spec)
        return torch.zeros(num_blocks, *shape, dtype=self._form.memory, device=self.device)

    def forward(
        self, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, cache: Tensor, plan: StepPlan
    ) -> tuple[Tensor, Tensor]:
        k_TKD, v_TKD = contiguous_heads(k_TKD), contiguous_heads(v_TKD)
        self._store(k_TKD, v_TKD, plan.slots, cache)
        return self.attend(contiguous_heads(q_THD), cache, plan), cache

    def fuses(self, prologue: Prologue) -> bool:
        rotated = prologue.rotary_dim
        if rotated < 2 or rotated % 2 or rotated > self.spec.head_dim:
            return False
        self._prologues[prologue] = store.Prologue(
            self.spec, self._architecture, self._form, prologue
        )
        return True

    def forward_packed(
        self, packed: Packed, prologue: Prologue, cache: Tensor, plan: StepPlan
    ) -> tuple[Tensor, Tensor]:
        q_THD = self._prologues[prologue](packed, plan.slots, cache)
        return self.attend(q_THD, cache, plan), cache

    def copy_blocks(self, cache: Tensor, pairs: Sequence[tuple[int, int]]) -> Tensor:
        self.copy_between(cache, cache, pairs)
        return cache

    def copy_between(
        self, source: Tensor, target: Tensor, pairs: Sequence[tuple[int, int]]
    ) -> None:
        """Blocks of `source` to blocks of `target`, caches of this backend.

        One of them may be in pinned memory of the host.
        """
        if pairs:
            self._copy(source, target, pairs_on(torch.device(self.device), pairs))
