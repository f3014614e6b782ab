"""Attention over a paged KV cache.

Shape legend: T tokens of the step, N requests, H query heads, K key/value heads, D head dim,
B entries a block table, S tokens a block.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from engine.errors import UnsupportedError

if TYPE_CHECKING:
    from torch import Tensor

#: One layer's cache. Opaque to the core: a step takes it and gives it back, because some devices
#: update in place and some return a new one.
KVCache: TypeAlias = Any


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionSpec:
    """What one attention layer needs. The unit of `unsupported` questions."""

    num_heads: int  # on this rank
    num_kv_heads: int
    head_dim: int
    block_size: int  # tokens
    dtype: str  # of q, k, v and the result: "float32", "bfloat16", "float16"
    kv_dtype: str
    scale: float
    window: int | None = None  # a token sees itself and the window-1 tokens before it
    soft_cap: float | None = None  # scores become soft_cap * tanh(scores / soft_cap)


@dataclass(frozen=True, slots=True)
class KVLayout:
    """One block of one layer, keys and values together, so core can size the cache."""

    shape: tuple[int, ...]
    dtype: str
    bytes_per_block: int


@dataclass(frozen=True, slots=True)
class StepMetadata:
    """Which tokens a step computes and where their KV lives. Tensors on the platform's device.

    Request i owns rows query_start[i]:query_start[i+1] of the step; they are the last of its
    lengths[i] tokens. A slot is `block * block_size + offset`. Requests with one token to compute
    come first.

    On a device with static shapes the step is padded to a `Shape`, and nothing that follows from it
    differs between its steps: the tensors' sizes, `max_query`, `max_length` and `num_decodes`. In a
    decode step a request that is padding has one row and length 1; in others it has no row and
    length 0, the rows that are padding come last and belong to nobody, and `num_decodes` is 0. What
    is computed for padding is not read.
    """

    query_start: "Tensor"  # [N+1] int32
    lengths: "Tensor"  # [N] int32: tokens in the cache once this step has stored its own
    block_table: "Tensor"  # [N, B] int32; entries past a request's last block are 0, or `pad_block`
    slots: "Tensor"  # [T] int64: where each token's KV is stored
    max_query: int  # the most rows of one request
    max_length: int  # the largest of `lengths`
    num_decodes: int  # how many of the first requests have exactly one row


@dataclass(frozen=True, kw_only=True, slots=True)
class Prologue:
    """What a layer does to its queries and keys before it attends: operation `rms_norm` on each
    head where there is an epsilon, then operation `rotary`."""

    rotary_dim: int  # the first of each head's dimensions that are rotated
    norm_epsilon: float | None = None


@dataclass(frozen=True, slots=True)
class Packed:
    """What a layer's projection gave, and what a prologue needs. R rotary_dim."""

    qkv_TX: "Tensor"  # [T, (H + 2K) * D]: a token's queries, keys and values side by side
    cos_TR: "Tensor"  # [T, R/2] float32
    sin_TR: "Tensor"
    query_norm_D: "Tensor | None" = None  # weights, where there is an epsilon
    key_norm_D: "Tensor | None" = None


class AttentionBackend(ABC):
    """Made once for each distinct spec of a model; shared by its layers."""

    def __init__(self, spec: AttentionSpec, device: str) -> None:
        self.spec = spec
        self.device = device

    @classmethod
    @abstractmethod
    def unsupported(cls, spec: AttentionSpec) -> str | None:
        """Why this backend cannot serve `spec`, or None when it can."""

    @abstractmethod
    def kv_layout(self) -> KVLayout: ...

    @abstractmethod
    def allocate(self, num_blocks: int) -> KVCache:
        """An empty cache of one layer."""

    @abstractmethod
    def plan(self, step: StepMetadata) -> Any:
        """Once a step: whatever `forward` needs beside q, k and v."""

    @abstractmethod
    def forward(
        self, q_THD: "Tensor", k_TKD: "Tensor", v_TKD: "Tensor", cache: KVCache, plan: Any
    ) -> "tuple[Tensor, KVCache]":
        """Once a layer: store k and v at the step's slots, then attend causally.

        Returns the result [T, H, D] in `spec.dtype`, and the cache after the store.
        """

    def fuses(self, prologue: Prologue) -> bool:
        """Whether `forward_packed` does it. Asked once a layer, before the first step."""
        return False

    def forward_packed(
        self, packed: Packed, prologue: Prologue, cache: KVCache, plan: Any
    ) -> "tuple[Tensor, KVCache]":
        """As `forward`, of the queries and keys that the prologue makes.

        Called for prologues that the backend `fuses`, and no others.
        """
        raise UnsupportedError(f"{type(self).__name__} has no prologue of its own")

    @abstractmethod
    def copy_blocks(self, cache: KVCache, pairs: Sequence[tuple[int, int]]) -> KVCache:
        """Copy whole blocks, source to target; targets are distinct and are no sources."""
