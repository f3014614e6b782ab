"""Attention that takes a layer's projection as it is: norm of the heads, rotation, store, attend.

T tokens, L tokens of a request's blocks, H query heads, K key/value heads, G = H / K, D head dim.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from engine.platform import AttentionBackend, AttentionSpec, KVLayout, StepMetadata
from engine.platform.attention import Packed, Prologue

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class PackedAttention(AttentionBackend):
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

    def plan(self, step: StepMetadata) -> tuple[Tensor, list[tuple[int, int, Tensor]]]:
        """Slots of the step's tokens; of each request its first row, its rows, slots of all tokens."""
        size, parts = self.spec.block_size, []
        starts = step.query_start.tolist()
        for number, length in enumerate(step.lengths.tolist()):
            offsets_L = torch.arange(length)
            blocks_L = step.block_table[number].long()[offsets_L // size]
            first, end = starts[number], starts[number + 1]
            parts.append((first, end - first, blocks_L * size + offsets_L % size))
        return step.slots, parts

    def fuses(self, prologue: Prologue) -> bool:
        return prologue.rotary_dim <= self.spec.head_dim

    def forward_packed(
        self,
        packed: Packed,
        prologue: Prologue,
        cache: Tensor,
        plan: tuple[Tensor, list[tuple[int, int, Tensor]]],
    ) -> tuple[Tensor, Tensor]:
        spec = self.spec
        heads_THD = packed.qkv_TX.unflatten(1, (-1, spec.head_dim))
        counts = (spec.num_heads, spec.num_kv_heads, spec.num_kv_heads)
        q_THD, k_TKD, v_TKD = heads_THD.split(counts, dim=1)
        if prologue.norm_epsilon is not None:
            q_THD = _norm(q_THD, packed.query_norm_D, prologue.norm_epsilon)
            k_TKD = _norm(k_TKD, packed.key_norm_D, prologue.norm_epsilon)
        q_THD = _rotate(q_THD, packed.cos_TR, packed.sin_TR)
        k_TKD = _rotate(k_TKD, packed.cos_TR, packed.sin_TR)
        return self.forward(q_THD, k_TKD, v_TKD, cache, plan)

    def forward(
        self,
        q_THD: Tensor,
        k_TKD: Tensor,
        v_TKD: Tensor,
        cache: Tensor,
        plan: tuple[Tensor, list[tuple[int, int, Tensor]]],
    ) -> tuple[Tensor, Tensor]:
        spec, (slots_T, parts) = self.spec, plan
        cache[:, slots_T] = torch.stack([k_TKD, v_TKD]).to(cache.dtype)
        out_THD = torch.empty_like(q_THD)
        for first, rows, slots_L in parts:
            k_LKD, v_LKD = cache[:, slots_L].float()
            q_RKGD = q_THD[first : first + rows].float().unflatten(1, (spec.num_kv_heads, -1))
            scores_RKGL = torch.einsum("rkgd,lkd->rkgl", q_RKGD, k_LKD) * spec.scale
            if spec.soft_cap is not None:
                scores_RKGL = spec.soft_cap * torch.tanh(scores_RKGL / spec.soft_cap)
            at_R = torch.arange(len(slots_L) - rows, len(slots_L))
            back_RL = at_R[:, None] - torch.arange(len(slots_L))
            seen_RL = back_RL >= 0
            if spec.window is not None:
                seen_RL &= back_RL < spec.window
            weights_RKGL = scores_RKGL.masked_fill(~seen_RL[:, None, None], -math.inf).softmax(-1)
            out_RKGD = torch.einsum("rkgl,lkd->rkgd", weights_RKGL, v_LKD)
            out_THD[first : first + rows] = out_RKGD.flatten(1, 2).to(out_THD.dtype)
        return out_THD, cache

    def copy_blocks(self, cache: Tensor, pairs: Sequence[tuple[int, int]]) -> Tensor:
        blocks = cache.unflatten(1, (-1, self.spec.block_size)).clone()
        sources, targets = (list(side) for side in zip(*pairs, strict=True))
        blocks[:, targets] = blocks[:, sources]
        return blocks.flatten(1, 2)


def _norm(x_THD: Tensor, weight_D: Tensor | None, epsilon: float) -> Tensor:
    assert weight_D is not None
    wide = x_THD.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
    return (normed * weight_D.float()).to(x_THD.dtype)


def _rotate(x_THD: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> Tensor:
    half = cos_TR.shape[1]
    cos, sin = cos_TR[:, None], sin_TR[:, None]
    wide = x_THD.float()
    low, high, rest = wide[..., :half], wide[..., half : 2 * half], wide[..., 2 * half :]
    turned = torch.cat([low * cos - high * sin, high * cos + low * sin, rest], -1)
    return turned.to(x_THD.dtype)
