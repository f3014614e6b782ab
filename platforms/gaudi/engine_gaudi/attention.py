"""Attention over a paged KV cache: decode over a flat list of blocks, prompts a request a row.

Keys and values are kept apart, a row a token, and written by `index_copy_` on the whole tensor: a
write through a view would be lost by a compiler that makes every program a function.

Shape legend: T tokens of the step, N requests, Q query rows of the longest, B entries a block
table, S tokens a block, L = B * S, M = N * B, H query heads, K key/value heads, D head dim.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from engine.platform import AttentionBackend, AttentionSpec, KVLayout, StepMetadata
from engine_gaudi import kernels
from engine_gaudi.flat import UNSEEN, flat_attention
from engine_gaudi.kernels import Kernels

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
KV_FP8 = "fp8_e4m3"
KV_DTYPES = {**DTYPES, KV_FP8: kernels.FP8}

#: Keys and values of one layer, each [blocks * S, K, D].
Cache: TypeAlias = tuple[Tensor, Tensor]


class DecodePlan(NamedTuple):
    slots_T: Tensor
    blocks_M: Tensor  # the flat list
    groups_M: Tensor  # whose they are; N: nobody's
    seen_MS: Tensor


class PromptPlan(NamedTuple):
    slots_T: Tensor
    rows_X: Tensor  # N * Q: the step's row that is each request's query
    places_T: Tensor  # where in N * Q each row of the step went
    blocks_M: Tensor
    held_NL: Tensor  # which keys there are
    mask_N1QL: Tensor  # 0, or UNSEEN


Plan: TypeAlias = DecodePlan | PromptPlan


class FlatPagedAttention(AttentionBackend):
    """A cache in fp8 has no scales: it holds what keys and values are, up to the largest number.

    Args:
        fused: the kernels for prompts; a soft cap or an unusual head size is torch's.
        largest: of the device's e4m3, for a cache in fp8.
    """

    def __init__(
        self, spec: AttentionSpec, device: str, fused: Kernels, largest: float | None = None
    ) -> None:
        super().__init__(spec, device)
        assert largest or spec.kv_dtype != KV_FP8, "a cache in fp8 needs its largest number"
        self._fused = fused
        self._largest = largest

    @classmethod
    def unsupported(cls, spec: AttentionSpec) -> str | None:
        for dtype, known in ((spec.dtype, DTYPES), (spec.kv_dtype, KV_DTYPES)):
            if dtype not in known:
                return f"{dtype} is none of {', '.join(known)}"
        if spec.num_heads % spec.num_kv_heads:
            return f"{spec.num_heads} heads do not share {spec.num_kv_heads} key/value heads evenly"
        return None

    def kv_layout(self) -> KVLayout:
        spec = self.spec
        shape = (2, spec.block_size, spec.num_kv_heads, spec.head_dim)
        return KVLayout(shape, spec.kv_dtype, math.prod(shape) * KV_DTYPES[spec.kv_dtype].itemsize)

    def allocate(self, num_blocks: int) -> Cache:
        spec = self.spec
        shape = (num_blocks * spec.block_size, spec.num_kv_heads, spec.head_dim)
        dtype = KV_DTYPES[spec.kv_dtype]
        return (
            torch.zeros(shape, dtype=dtype, device=self.device),
            torch.zeros(shape, dtype=dtype, device=self.device),
        )

    def plan(self, step: StepMetadata) -> Plan:
        if step.num_decodes == len(step.lengths):
            return self._plan_decode(step)
        return self._plan_prompt(step)

    def forward(
        self, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, cache: Cache, plan: Plan
    ) -> tuple[Tensor, Cache]:
        for kept, new in zip(cache, (k_TKD, v_TKD), strict=True):
            _store(kept, plan.slots_T, self._as_kept(new))
        k_MSKD, v_MSKD = (self._blocks(kept, plan.blocks_M, q_THD.dtype) for kept in cache)
        if isinstance(plan, DecodePlan):
            out_THD = flat_attention(
                q_THD,
                k_MSKD,
                v_MSKD,
                plan.groups_M,
                plan.seen_MS,
                scale=self.spec.scale,
                soft_cap=self.spec.soft_cap,
            )
        else:
            out_THD = self._prompt(q_THD, k_MSKD, v_MSKD, plan)
        return out_THD, cache

    def copy_blocks(self, cache: Cache, pairs: Sequence[tuple[int, int]]) -> Cache:
        size = self.spec.block_size
        blocks_2P = torch.tensor(pairs, dtype=torch.int64).t()
        slots_2X = (blocks_2P[..., None] * size + torch.arange(size)).flatten(1).to(self.device)
        for kept in cache:
            _store(kept, slots_2X[1], kept.index_select(0, slots_2X[0]))
        return cache

    def _as_kept(self, new_TKD: Tensor) -> Tensor:
        if self._largest is None:
            return new_TKD.to(KV_DTYPES[self.spec.kv_dtype])
        return self._fused.to_fp8(new_TKD, self._largest)

    def _blocks(self, kept: Tensor, blocks_M: Tensor, dtype: torch.dtype) -> Tensor:
        """[M, S, K, D]."""
        in_blocks = kept.view(-1, self.spec.block_size, *kept.shape[1:])
        found = in_blocks.index_select(0, blocks_M)
        return found.to(dtype) if self._largest is None else self._fused.from_fp8(found, dtype)

    def _plan_decode(self, step: StepMetadata) -> DecodePlan:
        """The list has every entry of the block tables, used or not: it is a program's shape."""
        count, width = step.block_table.shape
        device = step.block_table.device
        positions_L = torch.arange(width * self.spec.block_size, device=device)
        last_N1 = step.lengths[:, None] - 1
        seen_NBS = self._sees(last_N1, positions_L).view(count, width, -1)
        rows_N1 = torch.arange(count, device=device)[:, None]
        groups_NB = torch.where(seen_NBS.any(-1), rows_N1, count)
        blocks_M = step.block_table.flatten().long()
        return DecodePlan(step.slots, blocks_M, groups_NB.flatten(), seen_NBS.flatten(0, 1))

    def _plan_prompt(self, step: StepMetadata) -> PromptPlan:
        count, width = step.block_table.shape
        device, tokens, queries = step.block_table.device, len(step.slots), step.max_query
        starts_N, stops_N = step.query_start[:-1], step.query_start[1:]
        rows_NQ = starts_N[:, None] + torch.arange(queries, device=device)
        positions_NQ = step.lengths[:, None] - stops_N[:, None] + rows_NQ
        keys_L = torch.arange(width * self.spec.block_size, device=device)
        own_NQ1 = (rows_NQ < stops_N[:, None])[..., None]
        seen_NQL = self._sees(positions_NQ[..., None], keys_L) & own_NQ1
        mask_NQL = torch.zeros(seen_NQL.shape, dtype=DTYPES[self.spec.dtype], device=device)
        rows_T = torch.arange(tokens, device=device)
        owners_T = (rows_T[:, None] >= stops_N).sum(1).clamp(max=count - 1)
        columns_T = (rows_T - starts_N.index_select(0, owners_T)).clamp(0, queries - 1)
        return PromptPlan(
            step.slots,
            rows_NQ.clamp(max=tokens - 1).flatten().long(),
            owners_T * queries + columns_T,
            step.block_table.flatten().long(),
            keys_L < step.lengths[:, None],
            mask_NQL.masked_fill(~seen_NQL, UNSEEN).unsqueeze(1),
        )

    def _sees(self, query: Tensor, key: Tensor) -> Tensor:
        """Whether a token at one position sees that at another."""
        seen = key <= query
        if self.spec.window is not None:
            seen = seen & (key > query - self.spec.window)
        return seen

    def _prompt(self, q_THD: Tensor, k_MSKD: Tensor, v_MSKD: Tensor, plan: PromptPlan) -> Tensor:
        count, length = plan.held_NL.shape
        q_NQHD = q_THD.index_select(0, plan.rows_X).view(count, -1, *q_THD.shape[1:])
        absent = ~plan.held_NL[:, :, None, None]  # may be NaN, which a mask does not hide
        k_NLKD, v_NLKD = (
            one.reshape(count, length, *one.shape[2:]).masked_fill(absent, 0)
            for one in (k_MSKD, v_MSKD)
        )
        out_NHQD = self._attend(
            q_NQHD.transpose(1, 2), k_NLKD.transpose(1, 2), v_NLKD.transpose(1, 2), plan.mask_N1QL
        )
        return out_NHQD.transpose(1, 2).flatten(0, 1).index_select(0, plan.places_T)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        spec = self.spec
        if spec.soft_cap is not None or spec.head_dim not in kernels.FUSED_HEAD_DIMS:
            return kernels.torch_attention(q, k, v, mask, spec.scale, spec.soft_cap)
        return self._fused.attention(q, k, v, mask, spec.scale)


def _store(kept: Tensor, slots_X: Tensor, rows_XKD: Tensor) -> None:
    if kept.dtype == kernels.FP8 and kept.device.type == "cpu":  # where torch copies no fp8
        kept, rows_XKD = kept.view(torch.uint8), rows_XKD.view(torch.uint8)
    kept.index_copy_(0, slots_X, rows_XKD)
