"""`PagedAttention`: the backend that platforms offer to the engine.

T tokens, N requests, H query heads, K key/value heads, D head dim, S tokens a block.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.platform import (
    AttentionBackend,
    AttentionSpec,
    KVLayout,
    Packed,
    Prologue,
    StepMetadata,
)
from engine_triton.architecture import Architecture
from engine_triton.attention import store
from engine_triton.attention.blocks import BlockCopy, pairs_on
from engine_triton.attention.decode import Decode, DecodePlan
from engine_triton.attention.layout import (
    DTYPES,
    KV_DTYPES,
    KVFormat,
    block_shape,
    contiguous_heads,
)
from engine_triton.attention.prefill import Prefill, PrefillPlan

#: Numbers of one head that tiles have room for.
MOST_HEAD_DIM = 256


@dataclass(frozen=True, slots=True)
class Plan:
    """Of one step. Its tensors are on the device, and nothing in it depends on what they hold."""

    slots: Tensor  # [T] int64
    lengths: Tensor  # [N] int32
    block_table: Tensor  # [N, B] int32
    decode: DecodePlan | None
    prefill: PrefillPlan | None


class PagedAttention(AttentionBackend):
    """A cache of one layer is one tensor [P, 2, K, S, D], updated in place; fp8 is kept as bytes.

    Requests with one row are the decode kernel's, all others the prefill kernel's. No method waits
    for the device, and `plan` depends on sizes only: a captured graph may hold all of it.

    Args:
        architecture: of the device; that of Triton's active driver, if none is given.
    """

    def __init__(
        self, spec: AttentionSpec, device: str, architecture: Architecture | None = None
    ) -> None:
        super().__init__(spec, device)
        architecture = architecture or Architecture.current()
        self._architecture = architecture
        self._form = KVFormat.of(spec, architecture)
        self._store = store.Store(spec, architecture, self._form)
        self._decode = Decode(spec, architecture, self._form)
        self._prefill = Prefill(spec, architecture, self._form)
        self._copy = BlockCopy(architecture)
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
        if spec.head_dim > MOST_HEAD_DIM:
            return f"head_dim is at most {MOST_HEAD_DIM}, got {spec.head_dim}"
        if spec.window is not None and spec.window < 1:
            return f"window must be at least 1, got {spec.window}"
        if spec.soft_cap is not None and spec.soft_cap <= 0:
            return f"soft_cap must be more than 0, got {spec.soft_cap}"
        return None

    def kv_layout(self) -> KVLayout:
        shape = block_shape(self.spec)
        count = shape[0] * shape[1] * shape[2] * shape[3]
        return KVLayout(shape, self.spec.kv_dtype, count * self._form.memory.itemsize)

    def allocate(self, num_blocks: int) -> Tensor:
        """Zeros: rows that are padding read block 0, whoever has it, and should meet no NaN."""
        shape = block_shape(self.spec)
        return torch.zeros(num_blocks, *shape, dtype=self._form.memory, device=self.device)

    def plan(self, step: StepMetadata) -> Plan:
        table = step.block_table
        table = table if table.stride(1) == 1 else table.contiguous()
        decodes, requests = step.num_decodes, step.lengths.shape[0]
        decode = self._decode.plan(decodes, step.max_length, table.device) if decodes else None
        prefill = self._prefill.plan(step) if requests > decodes else None
        return Plan(step.slots, step.lengths, table, decode, prefill)

    def forward(
        self, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, cache: Tensor, plan: Plan
    ) -> tuple[Tensor, Tensor]:
        k_TKD, v_TKD = contiguous_heads(k_TKD), contiguous_heads(v_TKD)
        self._store(k_TKD, v_TKD, plan.slots, cache)
        return self._attend(contiguous_heads(q_THD), cache, plan), cache

    def fuses(self, prologue: Prologue) -> bool:
        rotated = prologue.rotary_dim
        if rotated < 2 or rotated % 2 or rotated > self.spec.head_dim:
            return False
        self._prologues[prologue] = store.Prologue(
            self.spec, self._architecture, self._form, prologue
        )
        return True

    def forward_packed(
        self, packed: Packed, prologue: Prologue, cache: Tensor, plan: Plan
    ) -> tuple[Tensor, Tensor]:
        q_THD = self._prologues[prologue](packed, plan.slots, cache)
        return self._attend(q_THD, cache, plan), cache

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

    def _attend(self, q_THD: Tensor, cache: Tensor, plan: Plan) -> Tensor:
        out_THD = torch.empty(q_THD.shape, dtype=q_THD.dtype, device=q_THD.device)
        seen = cache.view(self._form.reading)
        if plan.decode is not None:
            self._decode(q_THD, seen, plan.block_table, plan.lengths, plan.decode, out_THD)
        if plan.prefill is not None:
            self._prefill(q_THD, seen, plan.block_table, plan.lengths, plan.prefill, out_THD)
        return out_THD
