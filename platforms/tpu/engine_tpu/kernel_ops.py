"""The kernels as operations of torch, for `torch_tpu`: jax traces them, and no array is jax's.

Letters: T tokens, N requests, H query heads, K key/value heads, D head dim, B entries of a block
table, S tokens a block, M pairs. Pages are `[num_pages, parts, K, S, L]`, see `kernels`.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import jax
import torch
from torch import Tensor

from engine.compiled import ProgramMaker
from engine.platform import AttentionBackend, AttentionSpec, KVLayout, StepMetadata
from engine_tpu.kernels.attention import ragged_paged_attention
from engine_tpu.kernels.copy import copy_pages
from engine_tpu.kernels.store import store_kv
from engine_tpu.layout import PAIRS, kernels_refuse, kv_layout, padded_pairs

NONE = 0  # for a window or a soft cap: an operation's numbers are no options


class Plan(NamedTuple):
    """Tensors of the step, of 32 bits as the kernels want them, and whether all rows are alone."""

    query_start_N1: Tensor
    lengths_N: Tensor
    table_NB: Tensor
    slots_T: Tensor
    decode: bool


class KernelOps(NamedTuple):
    """(q, k, v, pages, query_start, lengths, table, slots, scale, window, soft_cap, decode)
    -> (out, pages), and (pages, sources, targets) -> pages. Pages are donated."""

    attend: Any
    copy: Any


@cache
def register() -> KernelOps:
    """Once for the process; `torch_tpu` must have been loaded."""
    jax_op = torch.tpu.pallas.jax_op  # type: ignore[attr-defined]
    return KernelOps(
        jax_op("engine_tpu::attend", _attend, donate_argnums=(3,)),
        jax_op("engine_tpu::copy_pages", _copy, donate_argnums=(0,)),
    )


def _attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    pages: jax.Array,
    query_start: jax.Array,
    lengths: jax.Array,
    table: jax.Array,
    slots: jax.Array,
    scale: float,
    window: int,
    soft_cap: float,
    decode: bool,
) -> tuple[jax.Array, jax.Array]:
    pages = store_kv(pages, k, v, slots)
    out = ragged_paged_attention(
        q,
        pages,
        lengths,
        table,
        query_start,
        scale=scale,
        window=None if window == NONE else window,
        soft_cap=None if soft_cap == NONE else soft_cap,
        decode=decode,
    )
    return out, pages


def _copy(pages: jax.Array, sources: jax.Array, targets: jax.Array) -> jax.Array:
    return copy_pages(pages, sources, targets)


class TorchTpuAttention(AttentionBackend):
    """The cache is one tensor that an operation takes and gives back."""

    def __init__(self, spec: AttentionSpec, device: str, maker: ProgramMaker) -> None:
        super().__init__(spec, device)
        self._ops = register()
        copy = self._ops.copy
        self._copy = maker.make(lambda pages, sources, targets: copy(pages, sources, targets))

    @classmethod
    def unsupported(cls, spec: AttentionSpec) -> str | None:
        return kernels_refuse(spec)

    def kv_layout(self) -> KVLayout:
        return kv_layout(self.spec, self.spec.num_kv_heads)

    def allocate(self, num_blocks: int) -> Tensor:
        """Its copying program is made with it: no step makes one."""
        shape = (num_blocks, *self.kv_layout().shape)
        dtype = getattr(torch, self.spec.kv_dtype)
        return self.copy_blocks(torch.zeros(shape, dtype=dtype, device=self.device), [(-1, 0)])

    def plan(self, step: StepMetadata) -> Plan:
        decode = step.num_decodes == len(step.lengths)
        slots_T = step.slots.to(torch.int32)
        return Plan(step.query_start, step.lengths, step.block_table, slots_T, decode)

    def forward(
        self, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, cache: Tensor, plan: Plan
    ) -> tuple[Tensor, Tensor]:
        spec = self.spec
        window, soft_cap = spec.window or NONE, spec.soft_cap or float(NONE)
        *tensors, decode = plan
        out, pages = self._ops.attend(
            q_THD, k_TKD, v_TKD, cache, *tensors, spec.scale, window, soft_cap, decode
        )
        return out, pages

    def copy_blocks(self, cache: Tensor, pairs: Sequence[tuple[int, int]]) -> Tensor:
        for start in range(0, len(pairs), PAIRS):
            sources, targets = (
                torch.from_numpy(side).to(self.device)
                for side in padded_pairs(pairs[start : start + PAIRS])
            )
            cache = self._copy(cache, sources, targets)
        return cache
