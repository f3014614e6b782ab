"""Attention whose shapes follow from the bucket alone: each token gathers all keys of its bucket.

T tokens, N requests, L tokens of a bucket's block table, K key/value heads, G query heads a
key/value head, D head dim.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from engine.platform import AttentionBackend, AttentionSpec, KVLayout, StepMetadata

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class WholeBucketAttention(AttentionBackend):
    @classmethod
    def unsupported(cls, spec: AttentionSpec) -> str | None:
        known = {spec.dtype, spec.kv_dtype} <= DTYPES.keys()
        return None if known else f"{spec.dtype} over {spec.kv_dtype}"

    def kv_layout(self) -> KVLayout:
        spec = self.spec
        shape = (2, spec.block_size, spec.num_kv_heads, spec.head_dim)
        return KVLayout(shape, spec.kv_dtype, math.prod(shape) * DTYPES[spec.kv_dtype].itemsize)

    def allocate(self, num_blocks: int) -> Tensor:
        """[2, blocks * block_size, K, D], poisoned: what nobody stored must not be read."""
        spec = self.spec
        shape = (2, num_blocks * spec.block_size, spec.num_kv_heads, spec.head_dim)
        return torch.full(shape, 1e4, dtype=DTYPES[spec.kv_dtype])

    def plan(self, step: StepMetadata) -> tuple[Tensor, Tensor, Tensor]:
        """Of each token: the slots of its request's bucket [T, L], which of them it sees; slots."""
        size, count = self.spec.block_size, len(step.slots)
        rows_T = torch.arange(count, device=step.slots.device)
        ends_N = step.query_start[1:]
        owner_T = torch.searchsorted(ends_N, rows_T, right=True).clamp(max=len(ends_N) - 1)
        position_T = step.lengths[owner_T] - (ends_N[owner_T] - rows_T)
        offsets_L = torch.arange(step.max_length)
        slots_TL = step.block_table[owner_T][:, offsets_L // size] * size + offsets_L % size
        back_TL = position_T[:, None] - offsets_L
        seen_TL = back_TL >= 0
        if self.spec.window is not None:
            seen_TL &= back_TL < self.spec.window
        return slots_TL.long(), seen_TL, step.slots

    def forward(
        self,
        q_THD: Tensor,
        k_TKD: Tensor,
        v_TKD: Tensor,
        cache: Tensor,
        plan: tuple[Tensor, Tensor, Tensor],
    ) -> tuple[Tensor, Tensor]:
        slots_TL, seen_TL, slots_T = plan
        spec = self.spec
        cache = cache.index_copy(1, slots_T, torch.stack([k_TKD, v_TKD]).to(cache.dtype))
        k_TLKD, v_TLKD = cache[0][slots_TL].float(), cache[1][slots_TL].float()
        q_TKGD = q_THD.float().unflatten(1, (spec.num_kv_heads, -1))
        scores_TKGL = torch.einsum("tkgd,tlkd->tkgl", q_TKGD, k_TLKD) * spec.scale
        if spec.soft_cap is not None:
            scores_TKGL = spec.soft_cap * torch.tanh(scores_TKGL / spec.soft_cap)
        scores_TKGL = scores_TKGL.masked_fill(~seen_TL[:, None, None], -1e30)
        weights_TKGL = scores_TKGL.softmax(-1)
        v_TLKD = v_TLKD.masked_fill(~seen_TL[:, :, None, None], 0.0)  # NaN, perhaps
        out_TKGD = torch.einsum("tkgl,tlkd->tkgd", weights_TKGL, v_TLKD)
        return out_TKGD.flatten(1, 2).to(q_THD.dtype), cache

    def copy_blocks(self, cache: Tensor, pairs: Sequence[tuple[int, int]]) -> Tensor:
        blocks = cache.unflatten(1, (-1, self.spec.block_size)).clone()
        sources, targets = (list(side) for side in zip(*pairs, strict=True))
        blocks[:, targets] = blocks[:, sources]
        return blocks.flatten(1, 2)
