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
from engine.platform import AttentionSpec, KVLayout
from engine_tpu.kernels.attention import ragged_paged_attention
from engine_tpu.kernels.store import store_kv
from engine_tpu.layout import PAIRS, PagedAttention, Plan, kv_layout, padded_pairs
from engine_tpu.plain import copy_pages

NONE = 0  # for a window or a soft cap: an operation's numbers are no options


class KernelOps(NamedTuple):
    """(q, k, v, pages, lengths, table, query_start, slots, scale, window, soft_cap, decode)
    -> (out, pages), and (pages, sources, targets) -> pages. Pages are donated."""

    attend: Any
    copy: Any


@cache
def register() -> KernelOps:
    """Once for the process; `torch_tpu` must have been loaded."""
    jax_op = torch.tpu.pallas.jax_op  # type: ignore[attr-defined]
    return KernelOps(
        jax_op("engine_tpu::attend", _attend, donate_argnums=(3,)),
        jax_op("engine_tpu::copy_pages", copy_pages, donate_argnums=(0,)),
    )


def _attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    pages: jax.Array,
    lengths: jax.Array,
    table: jax.Array,
    query_start: jax.Array,
    slots: jax.Array,
    scale: float,
    window: int,
    soft_cap: float,
    decode: bool,
) -> tuple[jax.Array, jax.Array]:
    pages = store_kv(pages, k, v, slots)
    limits: dict[str, Any] = {"window": window or None, "soft_cap": soft_cap or None}
    step = (lengths, table, query_start)
    return ragged_paged_attention(q, pages, *step, scale=scale, decode=decode, **limits), pages


class TorchTpuAttention(PagedAttention):
    """The cache is one tensor that an operation takes and gives back."""

    def __init__(self, spec: AttentionSpec, device: str, maker: ProgramMaker) -> None:
        super().__init__(spec, device)
        self._ops = register()
        copy = self._ops.copy
        self._copy = maker.make(lambda pages, sources, targets: copy(pages, sources, targets))

    def kv_layout(self) -> KVLayout:
        return kv_layout(self.spec, self.spec.num_kv_heads)

    def allocate(self, num_blocks: int) -> Tensor:
        """Its copying program is made with it: no step makes one."""
        shape = (num_blocks, *self.kv_layout().shape)
        dtype = getattr(torch, self.spec.kv_dtype)
        return self.copy_blocks(torch.zeros(shape, dtype=dtype, device=self.device), [(-1, 0)])

    def forward(
        self, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, cache: Tensor, plan: Plan
    ) -> tuple[Tensor, Tensor]:
        *tensors, decode = plan
        scores = (self.spec.scale, self.spec.window or NONE, self.spec.soft_cap or float(NONE))
        out, pages = self._ops.attend(q_THD, k_TKD, v_TKD, cache, *tensors, *scores, decode)
        return out, pages

    def copy_blocks(self, cache: Tensor, pairs: Sequence[tuple[int, int]]) -> Tensor:
        for start in range(0, len(pairs), PAIRS):
            padded = padded_pairs(pairs[start : start + PAIRS])
            cache = self._copy(cache, *(torch.from_numpy(side).to(self.device) for side in padded))
        return cache
