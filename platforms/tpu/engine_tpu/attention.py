"""Paged attention over pages that are replaced, never changed: the kernels' for the core.

Letters: T tokens of the step, N requests, H query heads, K key/value heads, D head dim, B entries
of a block table, S tokens a block, which the kernels call a page.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from torch import Tensor
from torchax.interop import torch_view
from torchax.tensor import Tensor as Traced

from engine.platform import AttentionSpec, KVLayout
from engine_tpu import plain
from engine_tpu.arrays import to_jax, to_torch
from engine_tpu.kernels.attention import ragged_paged_attention
from engine_tpu.kernels.store import store_kv
from engine_tpu.layout import PAIRS, PagedAttention, Plan, kv_layout, padded_pairs, refuses
from engine_tpu.placement import AXIS, WHOLE
from engine_tpu.programs import Pages, Programs

_HEADS = PartitionSpec(None, AXIS, None)
_PAGES = PartitionSpec(None, None, AXIS)


class PlainAttention(PagedAttention):
    """In jax's own operations."""

    store: ClassVar[Callable[..., jax.Array]] = staticmethod(plain.store_kv)
    attention: ClassVar[Callable[..., jax.Array]] = staticmethod(plain.ragged_paged_attention)

    def __init__(self, spec: AttentionSpec, device: str, programs: Programs) -> None:
        super().__init__(spec, device)
        self._programs = programs
        self._placement = programs.placement
        self._eager = programs.shared(
            (type(self), spec),
            lambda: jax.jit(self._attend, static_argnames="decode", donate_argnums=3),
        )

    @classmethod
    def unsupported(cls, spec: AttentionSpec) -> str | None:
        return refuses(spec)

    def kv_layout(self) -> KVLayout:
        return kv_layout(self.spec, self._placement.heads_on_chips(self.spec.num_kv_heads))

    def allocate(self, num_blocks: int) -> Pages:
        """Zeros, divided over the chips by heads; the program that copies blocks is made, too."""
        sharding = self._placement.sharding(_PAGES)
        shape, dtype = (num_blocks, *self.kv_layout().shape), jnp.dtype(self.spec.kv_dtype)
        pages = Pages(self._programs.zeros(shape, dtype, sharding))
        arguments = (pages.array, *padded_pairs([]))
        self._copy = self._programs.shared(
            (shape, dtype),
            lambda: self._programs.compile(
                plain.copy_pages, arguments, donate_argnums=0, out_shardings=sharding
            ),
        )
        return pages

    def forward(
        self, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, cache: Pages, plan: Plan
    ) -> tuple[Tensor, Pages]:
        *tensors, decode = plan
        q, k, v, *rest = (to_jax(x) for x in (q_THD, k_TKD, v_TKD, *tensors))
        if not isinstance(q_THD, Traced):
            out, cache.array = self._eager(q, k, v, cache.array, *rest, decode=decode)
            return to_torch(out), cache
        out, pages = self._attend(q, k, v, cache.array, *rest, decode=decode)
        self._programs.replace(cache, pages)
        result: Tensor = torch_view(out)
        return result, cache

    def copy_blocks(self, cache: Pages, pairs: Sequence[tuple[int, int]]) -> Pages:
        for start in range(0, len(pairs), PAIRS):
            cache.array = self._copy(cache.array, *padded_pairs(pairs[start : start + PAIRS]))
        return cache

    def _attend(
        self, q: Any, k: Any, v: Any, pages: jax.Array, *rest: Any, decode: bool
    ) -> tuple[jax.Array, jax.Array]:
        """Store, then attend, each chip with its heads: [T, H, D], and the pages afterwards."""

        def step(
            q: jax.Array, k: jax.Array, v: jax.Array, pages: jax.Array, *rest: jax.Array
        ) -> tuple[jax.Array, jax.Array]:
            *metadata, slots = rest
            pages = self.store(pages, k, v, slots)
            return self.attention(q, pages, *metadata, **scores_of(self.spec), decode=decode), pages

        copies = pages.shape[2] // self.spec.num_kv_heads
        if copies > 1:  # more chips than heads
            k, v = (jnp.repeat(x, copies, axis=1) for x in (k, v))
        divided = jax.shard_map(
            step,
            mesh=self._placement.mesh,
            in_specs=(_HEADS, _HEADS, _HEADS, _PAGES, *(WHOLE,) * len(rest)),
            out_specs=(_HEADS, _PAGES),
            check_vma=False,
        )
        out, pages = divided(q, k, v, pages, *rest)
        return out, pages


class KernelAttention(PlainAttention):
    """By the platform's Pallas kernels."""

    store = staticmethod(store_kv)
    attention = staticmethod(ragged_paged_attention)
    unsupported = PagedAttention.unsupported


class InterpretedAttention(KernelAttention):
    """By the same kernels in Pallas' interpreter: slow, for tests."""

    store = staticmethod(functools.partial(store_kv, interpret=True))
    attention = staticmethod(functools.partial(ragged_paged_attention, interpret=True))


def scores_of(spec: AttentionSpec) -> dict[str, Any]:
    """What the kernels ask for by name."""
    return {"scale": spec.scale, "window": spec.window, "soft_cap": spec.soft_cap}
