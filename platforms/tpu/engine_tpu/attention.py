"""Paged attention over pages that are replaced, never changed: the kernels' for the core.

Letters: T tokens of the step, N requests, H query heads, K key/value heads, D head dim, B entries
of a block table, S tokens a block, which the kernels call a page.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
import torch
from jax.sharding import PartitionSpec
from numpy.typing import NDArray
from torch import Tensor
from torchax.interop import torch_view

from engine.platform import AttentionBackend, AttentionSpec, KVLayout, StepMetadata
from engine_tpu import plain
from engine_tpu.arrays import jax_dtype, to_numpy, to_torch
from engine_tpu.kernels import attention as kernels
from engine_tpu.kernels.copy import copy_pages
from engine_tpu.kernels.store import store_kv
from engine_tpu.layout import PAIRS, kernels_refuse, kv_layout, padded_pairs, refuses
from engine_tpu.placement import AXIS, WHOLE
from engine_tpu.programs import Programs
from engine_tpu.tracing import Pages

Array: TypeAlias = NDArray[Any]
_HEADS = PartitionSpec(None, AXIS, None)
_PAGES = PartitionSpec(None, None, AXIS)


class Plan(NamedTuple):
    """Tensors of the step."""

    query_start_N1: Tensor
    lengths_N: Tensor
    table_NB: Tensor
    slots_T: Tensor


class PlainAttention(AttentionBackend):
    """In jax's own operations."""

    @property
    def _kernel(self) -> Callable[..., jax.Array]:
        return plain.ragged_paged_attention

    def __init__(self, spec: AttentionSpec, device: str, programs: Programs) -> None:
        super().__init__(spec, device)
        self._programs = programs
        self._tracer = programs.tracer
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
        dtype = jax_dtype(getattr(torch, self.spec.kv_dtype))
        sharding = self._placement.sharding(_PAGES)
        shape = (num_blocks, *self.kv_layout().shape)
        pages = Pages(self._programs.zeros(shape, dtype, sharding))
        self._copies = self._programs.shared(
            (type(self), shape, dtype),
            lambda: self._programs.make(
                self._copy, (pages.array, *padded_pairs([])), donate=(0,), out_shardings=sharding
            ),
        )
        return pages

    def plan(self, step: StepMetadata) -> tuple[Plan, bool]:
        decode = step.num_decodes == len(step.lengths)
        return Plan(step.query_start, step.lengths, step.block_table, step.slots), decode

    def forward(
        self, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, cache: Pages, plan: tuple[Plan, bool]
    ) -> tuple[Tensor, Pages]:
        tensors, decode = plan
        pages = self._tracer.read(cache)
        if self._tracer.tracing:
            q, k, v, *rest = (x.jax() for x in (q_THD, k_TKD, v_TKD, *tensors))  # type: ignore[attr-defined]
            out, pages = self._attend(q, k, v, pages, *rest, decode=decode)
            self._tracer.write(cache, pages)
            result: Tensor = torch_view(out)
            return result, cache
        arrays = [to_numpy(x) for x in (q_THD, k_TKD, v_TKD, *tensors)]
        q, k, v, *rest = _filled_up(*arrays, decode=decode)
        out, pages = self._eager(q, k, v, pages, *rest, decode=decode)
        self._tracer.write(cache, pages)
        return to_torch(out)[: len(q_THD)], cache

    def copy_blocks(self, cache: Pages, pairs: Sequence[tuple[int, int]]) -> Pages:
        for start in range(0, len(pairs), PAIRS):
            cache.array = self._copies(cache.array, *padded_pairs(pairs[start : start + PAIRS]))
        return cache

    # On each chip, with the heads that it has

    def _store(self, pages: jax.Array, k: jax.Array, v: jax.Array, slots: jax.Array) -> jax.Array:
        return plain.store_kv(pages, k, v, slots)

    def _attention(
        self,
        q_THD: jax.Array,
        pages: jax.Array,
        lengths_N: jax.Array,
        table_NB: jax.Array,
        query_start_N1: jax.Array,
        *,
        decode: bool,
    ) -> jax.Array:
        spec = self.spec
        return self._kernel(
            q_THD,
            pages,
            lengths_N,
            table_NB,
            query_start_N1,
            scale=spec.scale,
            window=spec.window,
            soft_cap=spec.soft_cap,
            decode=decode,
        )

    def _copy(self, pages: jax.Array, sources: jax.Array, targets: jax.Array) -> jax.Array:
        return plain.copy_pages(pages, sources, targets)

    # Of all chips

    def _attend(
        self,
        q_THD: jax.Array,
        k_TKD: jax.Array,
        v_TKD: jax.Array,
        pages: jax.Array,
        query_start_N1: jax.Array,
        lengths_N: jax.Array,
        table_NB: jax.Array,
        slots_T: jax.Array,
        *,
        decode: bool,
    ) -> tuple[jax.Array, jax.Array]:
        """Store, then attend: [T, H, D], and the pages after the store."""

        def step(q: jax.Array, k: jax.Array, v: jax.Array, pages: jax.Array, *rest: jax.Array):  # type: ignore[no-untyped-def]
            query_start, lengths, table, slots = rest
            pages = self._store(pages, k, v, slots)
            return self._attention(q, pages, lengths, table, query_start, decode=decode), pages

        copies = pages.shape[2] // self.spec.num_kv_heads
        if copies > 1:  # more chips than heads
            k_TKD, v_TKD = (x.repeat(copies, axis=1) for x in (k_TKD, v_TKD))
        arrays = (q_THD, k_TKD, v_TKD, pages, query_start_N1, lengths_N, table_NB, slots_T)
        divided = jax.shard_map(
            step,
            mesh=self._placement.mesh,
            in_specs=(_HEADS, _HEADS, _HEADS, _PAGES, *(WHOLE,) * 4),
            out_specs=(_HEADS, _PAGES),
            check_vma=False,
        )
        out, pages = divided(*arrays)
        return out, pages


class KernelAttention(PlainAttention):
    """By the platform's Pallas kernels."""

    interpret = False

    @property
    def _kernel(self) -> Callable[..., jax.Array]:
        return functools.partial(kernels.ragged_paged_attention, interpret=self.interpret)

    @classmethod
    def unsupported(cls, spec: AttentionSpec) -> str | None:
        return kernels_refuse(spec)

    def _store(self, pages: jax.Array, k: jax.Array, v: jax.Array, slots: jax.Array) -> jax.Array:
        return store_kv(pages, k, v, slots, interpret=self.interpret)

    def _copy(self, pages: jax.Array, sources: jax.Array, targets: jax.Array) -> jax.Array:
        copy = functools.partial(copy_pages, interpret=self.interpret)
        specs = (_PAGES, WHOLE, WHOLE)
        return jax.shard_map(
            copy, mesh=self._placement.mesh, in_specs=specs, out_specs=_PAGES, check_vma=False
        )(pages, sources, targets)


class InterpretedAttention(KernelAttention):
    """By the same kernels in Pallas' interpreter: slow, for tests."""

    interpret = True


def _filled_up(
    q: Array,
    k: Array,
    v: Array,
    query_start: Array,
    lengths: Array,
    table: Array,
    slots: Array,
    *,
    decode: bool,
) -> list[Array]:
    """A step outside of programs, in one of few sizes, because each is compiled: what is added
    belongs to nobody and is not stored."""
    requests = _power_of_two(len(lengths), 8)
    rows = requests if decode else _power_of_two(len(q), 16)
    blocks = _power_of_two(table.shape[1], 4)
    more, missing = rows - len(q), requests - len(lengths)
    q, k, v = (np.pad(x, ((0, more), (0, 0), (0, 0))) for x in (q, k, v))
    slots = np.pad(slots, (0, more), constant_values=-1)
    table = np.pad(table, ((0, missing), (0, blocks - table.shape[1])))
    if decode:
        query_start = np.arange(requests + 1, dtype=query_start.dtype)
    else:
        query_start = np.pad(query_start, (0, missing), mode="edge")
    lengths = np.pad(lengths, (0, missing), constant_values=int(decode))
    return [q, k, v, query_start, lengths, table, slots]


def _power_of_two(count: int, least: int) -> int:
    return max(least, 1 << (count - 1).bit_length())
