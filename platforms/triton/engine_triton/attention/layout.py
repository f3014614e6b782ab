"""What one layer's cache looks like, and how numbers are kept in it.

A cache is one tensor [P, 2, K, S, D]: P blocks, keys before values, K key/value heads, S tokens a
block, D head dim. The S tokens of one block and head lie side by side, so that what a program reads
at a time is one piece of memory.

fp8 is kept as bytes. Values are rounded to it and saturate when stored. Where the architecture
converts the format itself the kernels read it so; elsewhere they make float16 of the bits.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from engine.platform import AttentionSpec
from engine_triton.architecture import Architecture

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
KV_DTYPES = (*DTYPES, "fp8_e4m3", "fp8_e5m2")

_TRITON = {"float32": tl.float32, "bfloat16": tl.bfloat16, "float16": tl.float16}
#: Formats of "fp8_e4m3" that an architecture may convert itself.
_NATIVE = {"e4m3": torch.float8_e4m3fn, "e4m3fnuz": torch.float8_e4m3fnuz}


@dataclass(frozen=True, slots=True)
class KVFormat:
    """How numbers of a cache are written and read.

    What is read is `factor` times too small: the kernels multiply sums, not each number.
    """

    memory: torch.dtype  # what the cache is allocated as, and written as
    reading: torch.dtype  # what kernels see it as
    write: str  # of `numbers.encoded`
    read: str  # of `numbers.decoded`
    compute: Any  # Triton's dtype of the matrix products' operands
    factor: float = 1.0

    @classmethod
    def of(cls, spec: AttentionSpec, architecture: Architecture) -> "KVFormat":
        """fp8 fits into float16 without rounding, so products with it are made in float16."""
        if spec.kv_dtype in DTYPES:
            memory = DTYPES[spec.kv_dtype]
            return cls(memory, memory, "plain", "plain", _TRITON[spec.dtype])
        compute = tl.float32 if spec.dtype == "float32" else tl.float16
        byte = torch.uint8
        if spec.kv_dtype == "fp8_e5m2":
            return cls(byte, byte, "e5m2", "e5m2", compute)
        if architecture.fp8 is None:
            return cls(byte, byte, "e4m3", "e4m3", compute, factor=256.0)
        return cls(byte, _NATIVE[architecture.fp8], architecture.fp8, "plain", compute)


def block_shape(spec: AttentionSpec) -> tuple[int, int, int, int]:
    """[2, K, S, D]: one block of one layer, keys before values."""
    return 2, spec.num_kv_heads, spec.block_size, spec.head_dim


def contiguous_heads(x: Tensor) -> Tensor:
    """[T, H, D] whose numbers of one head lie side by side."""
    return x if x.stride(2) == 1 else x.contiguous()
