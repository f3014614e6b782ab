"""What both ways to the chips share of a paged cache."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from engine.platform import AttentionSpec, KVLayout
from engine_tpu.kernels import attention
from engine_tpu.kernels.pages import page_shape

BLOCK_SIZES = (64, 16, 32, 128, 256)
DTYPES = ("bfloat16", "float32")
#: Pairs of blocks that are copied at a time; the last call is filled up.
PAIRS = 16


def refuses(spec: AttentionSpec) -> str | None:
    """What no backend of the platform serves."""
    if spec.block_size not in BLOCK_SIZES:
        return f"blocks of {spec.block_size} tokens; it has {BLOCK_SIZES}"
    if spec.dtype not in DTYPES or spec.kv_dtype != spec.dtype:
        return f"{spec.dtype} over {spec.kv_dtype}; it has one of {DTYPES} for both"
    return None


def kernels_refuse(spec: AttentionSpec) -> str | None:
    return refuses(spec) or attention.unsupported(
        num_heads=spec.num_heads,
        num_kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        page_size=spec.block_size,
        dtype=spec.dtype,
    )


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
