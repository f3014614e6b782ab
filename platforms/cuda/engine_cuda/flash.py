"""Attention by FlashAttention-3, over the cache that the Triton kernels write.

The library (Shah et al., 2024, "FlashAttention-3: Fast and Accurate Attention with Asynchrony and
Low-precision") reads keys and values as [P, S, K, D] with any strides, by a block table on the
device. Both are views of one layer's cache [P, 2, K, S, D], so nothing is copied, and nothing of a
step's plan is read on the host: captured programs hold it as they hold the other kernels.

T tokens, N requests, H query heads, K key/value heads, D head dim, S tokens a block, P blocks,
B entries of a block table.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from torch import Tensor

from engine.errors import UnsupportedError
from engine.platform import AttentionSpec, StepMetadata
from engine_cuda import flash_installed
from engine_triton.architecture import Architecture
from engine_triton.attention.paged import PagedCache

#: The family of chips that the library is made for: Hopper.
FAMILY = "sm_90"
DTYPES = ("bfloat16", "float16")
MOST_HEAD_DIM = 256
HEAD_DIM_MULTIPLE = 8
#: Its tiles have more keys. Blocks that are multiples of a tile may be read whole, also behind a
#: request's last token, where others' numbers lie.
MOST_BLOCK_SIZE = 32
FUNCTION = "flash_attn_with_kvcache"
#: Arguments that its early versions do not have.
NEEDED = ("page_table", "cache_seqlens", "cu_seqlens_q", "max_seqlen_q", "softcap", "window_size")


@dataclass(frozen=True, slots=True)
class Plan:
    """Of one step. Its tensors are on the device."""

    slots: Tensor  # [T] int64
    query_start: Tensor  # [N+1] int32
    lengths: Tensor  # [N] int32
    block_table: Tensor  # [N, B] int32
    max_query: int


class FlashAttention3(PagedCache):
    """All rows of a step by one call, prompts and decodes together.

    Raises:
        UnsupportedError: the library cannot be loaded, or is too old.
    """

    def __init__(
        self, spec: AttentionSpec, device: str, architecture: Architecture | None = None
    ) -> None:
        super().__init__(spec, device, architecture)
        self._call = loaded()
        left = -1 if spec.window is None else spec.window - 1  # besides the token itself
        self._options = {
            "softmax_scale": spec.scale,
            "causal": True,
            "window_size": (left, -1 if spec.window is None else 0),
            "softcap": spec.soft_cap or 0.0,
        }

    @classmethod
    def unsupported(cls, spec: AttentionSpec) -> str | None:
        if spec.dtype not in DTYPES:
            return f"dtype {spec.dtype!r} is not one of {', '.join(DTYPES)}"
        if spec.kv_dtype != spec.dtype:
            return f"the cache must be {spec.dtype} as the queries are, not {spec.kv_dtype}"
        if spec.head_dim > MOST_HEAD_DIM or spec.head_dim % HEAD_DIM_MULTIPLE:
            return (
                f"head_dim must be a multiple of {HEAD_DIM_MULTIPLE} up to {MOST_HEAD_DIM}, got"
                f" {spec.head_dim}"
            )
        if spec.block_size > MOST_BLOCK_SIZE:
            return f"block_size must be at most {MOST_BLOCK_SIZE}, got {spec.block_size}"
        return super().unsupported(spec)

    def plan(self, step: StepMetadata) -> Plan:
        table = step.block_table
        table = table if table.stride(1) == 1 else table.contiguous()
        return Plan(step.slots, step.query_start, step.lengths, table, step.max_query)

    def attend(self, q_THD: Tensor, cache: Tensor, plan: Plan) -> Tensor:
        k_PSKD, v_PSKD = cache.transpose(2, 3).unbind(1)
        out_THD: Tensor = self._call(
            q_THD,
            k_PSKD,
            v_PSKD,
            cache_seqlens=plan.lengths,
            page_table=plan.block_table,
            cu_seqlens_q=plan.query_start,
            max_seqlen_q=plan.max_query,
            **self._options,
        )
        return out_THD


def unavailable(architecture: Architecture) -> str | None:
    """Why no layer can be served by it here, or None. Nothing is imported."""
    if architecture.name != FAMILY:
        return (
            f"FlashAttention-3 is made for {FAMILY} (Hopper), and this GPU is {architecture.chip}"
        )
    return flash_installed.missing()


def loaded() -> Callable[..., Tensor]:
    """The library's function.

    Raises:
        UnsupportedError: it cannot be loaded, or is too old.
    """
    try:
        function: Callable[..., Tensor] = vars(import_module(flash_installed.MODULE))[FUNCTION]
    except (ImportError, OSError, RuntimeError, KeyError) as error:
        raise UnsupportedError(
            f"FlashAttention-3 {flash_installed.version()} is installed, but does not load:"
            f" {error}; build it against this torch: {flash_installed.INSTALL}"
        ) from error
    known = inspect.signature(function).parameters
    if lacking := [name for name in NEEDED if name not in known]:
        raise UnsupportedError(
            f"FlashAttention-3 {flash_installed.version()} is too old: its {FUNCTION} has no"
            f" {', '.join(lacking)}; {flash_installed.INSTALL}"
        )
    return function


def refused(why: str) -> type[FlashAttention3]:
    """Stands for the backend where it cannot be used, and says why."""

    class Refused(FlashAttention3):
        __qualname__ = FlashAttention3.__qualname__

        @classmethod
        def unsupported(cls, spec: AttentionSpec) -> str | None:
            return why

    Refused.__name__ = FlashAttention3.__name__
    return Refused
