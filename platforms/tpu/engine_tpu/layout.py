"""What both ways to the chips share of a paged cache."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.platform import AttentionBackend, AttentionSpec, Capabilities, KVLayout, StepMetadata
from engine_tpu.kernels import attention
from engine_tpu.kernels.pages import page_shape

DTYPES = ("bfloat16", "float32")
CAPABILITIES = Capabilities(
    dtypes=DTYPES,
    kv_dtypes=DTYPES,
    block_sizes=(64, 16, 32, 128, 256),
    mixed_batches=True,
    chunked_prefill=True,
    prefix_reuse=True,
    static_shapes=True,
)
#: Pairs of blocks that are copied at a time; the last call is filled up.
PAIRS = 16


class Plan(NamedTuple):
    """Tensors of the step, as the kernels take them, and whether all rows are alone."""

    lengths_N: Tensor
    table_NB: Tensor
    query_start_N1: Tensor
    slots_T: Tensor  # int32
    decode: bool


class PagedAttention(AttentionBackend):
    """By the platform's kernels, where a subclass does not say otherwise."""

    @classmethod
    def unsupported(cls, spec: AttentionSpec) -> str | None:
        return refuses(spec) or attention.unsupported(
            num_heads=spec.num_heads,
            num_kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim,
            page_size=spec.block_size,
            dtype=spec.dtype,
        )

    def plan(self, step: StepMetadata) -> Plan:
        decode = step.num_decodes == len(step.lengths)
        slots_T = step.slots.to(torch.int32)
        return Plan(step.lengths, step.block_table, step.query_start, slots_T, decode)


def refuses(spec: AttentionSpec) -> str | None:
    """What no backend of the platform serves."""
    if spec.block_size not in CAPABILITIES.block_sizes:
        return f"blocks of {spec.block_size} tokens; it has {CAPABILITIES.block_sizes}"
    if spec.dtype not in DTYPES or spec.kv_dtype != spec.dtype:
        return f"{spec.dtype} over {spec.kv_dtype}; it has one of {DTYPES} for both"
    return None


def kv_layout(spec: AttentionSpec, num_kv_heads: int) -> KVLayout:
    """With so many heads of keys and values, which may be more than the model's."""
    shape = page_shape(num_kv_heads, spec.head_dim, spec.block_size)
    size = getattr(torch, spec.kv_dtype).itemsize
    return KVLayout(shape, spec.kv_dtype, math.prod(shape) * size)


def padded_pairs(pairs: Sequence[tuple[int, int]]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Sources and targets [PAIRS] int32, filled up with copies of nothing."""
    filled = [*pairs, *[(-1, -1)] * (PAIRS - len(pairs))]
    sources, targets = np.array(filled, dtype=np.int32).T
    return sources.copy(), targets.copy()
