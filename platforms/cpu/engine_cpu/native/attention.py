"""Attention over a paged cache, by the native kernels.

The cache of a layer is a tensor [P, S/32, K, unit]: P blocks of S tokens are cut into pages of 32,
and a unit is one page of one key/value head, keys before values, laid out so that the kernels
multiply with it as it is (`kernels/src/attention.h` has the picture). An int8 cache has a scale for
each token and head in its units; what is stored is rounded to it.

A plan is a native object that is filled once a step and read by the kernels when they run. So a
recorded step is run again with `replan`: the object, and with it its address, stays.

Shape legend: T tokens of the step, H query heads, K key/value heads, D head dim.

Import this only where `engine_cpu.native.available()` is None: it loads the library.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from engine_cpu_kernels import Dtype, library
from torch import Tensor

from engine.platform import AttentionBackend, AttentionSpec, KVLayout, StepMetadata
from engine_cpu.native.memory import NotRecordable, allocate, empty, recording

#: Tokens of a page: blocks are multiples of it.
PAGE = 32
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
KV_DTYPES = {**DTYPES, "int8": torch.int8}

# Looked up once: an attribute of the library costs more than an argument.
_attention = library().ek_attention
_fill_plan = library().ek_attention_plan
_new_plan = library().ek_attention_plan_new
_free_plan = library().ek_attention_plan_free
_unit_bytes = library().ek_attention_unit_bytes


class _NativePlan:
    """Owns one native object."""

    def __init__(self, spec: AttentionSpec) -> None:
        self.address: int = _new_plan(
            spec.num_heads,
            spec.num_kv_heads,
            spec.head_dim,
            spec.block_size // PAGE,
            spec.window or 0,
            spec.scale,
            spec.soft_cap or 0.0,
            Dtype[spec.dtype],
            Dtype[spec.kv_dtype],
        )

    def __del__(self) -> None:
        _free_plan(self.address)


class NativePlan:
    """One step's plan. Its native object is used again once nobody holds this any more."""

    def __init__(self, native: _NativePlan, spare: list[_NativePlan]) -> None:
        self._native = native
        self._spare = spare
        self.address = native.address

    def __del__(self) -> None:
        self._spare.append(self._native)


class NativeAttention(AttentionBackend):
    """What `forward` returns is ready, unless a tape is recorded.

    `share_prefixes`: attend once to a beginning that several requests of a step have in common.
    """

    def __init__(self, spec: AttentionSpec, device: str, *, share_prefixes: bool = True) -> None:
        super().__init__(spec, device)
        self._dtype = DTYPES[spec.dtype]
        self._kv_dtype = KV_DTYPES[spec.kv_dtype]
        self._share = int(share_prefixes)
        self._spare: list[_NativePlan] = []

    #: While a tape is recorded: the plans that its kernels will read.
    _noted: "list[tuple[NativeAttention, NativePlan]] | None" = None

    @classmethod
    @contextmanager
    def noting(cls, plans: "list[tuple[NativeAttention, NativePlan]]") -> Iterator[None]:
        """Every plan made inside is appended to `plans`, with its backend."""
        cls._noted = plans
        try:
            yield
        finally:
            cls._noted = None

    @classmethod
    def unsupported(cls, spec: AttentionSpec) -> str | None:
        for name, value, known in (
            ("dtype", spec.dtype, DTYPES),
            ("kv_dtype", spec.kv_dtype, KV_DTYPES),
        ):
            if value not in known:
                return f"{name} {value!r} is not one of {', '.join(known)}"
        sizes = (spec.num_heads, spec.num_kv_heads, spec.head_dim, spec.block_size)
        if min(sizes) < 1:
            return f"heads, head_dim and block_size must be at least 1, got {sizes}"
        if spec.num_heads % spec.num_kv_heads:
            return f"{spec.num_heads} heads cannot share {spec.num_kv_heads} key/value heads evenly"
        if spec.block_size % PAGE:
            return f"block_size must be a multiple of {PAGE}, got {spec.block_size}"
        if spec.window is not None and spec.window < 1:
            return f"window must be at least 1, got {spec.window}"
        if spec.soft_cap is not None and spec.soft_cap <= 0:
            return f"soft_cap must be above 0, got {spec.soft_cap}"
        return None

    def kv_layout(self) -> KVLayout:
        spec = self.spec
        unit = _unit_bytes(spec.head_dim, Dtype[spec.kv_dtype])
        pages = spec.block_size // PAGE
        shape = (pages, spec.num_kv_heads, unit // self._kv_dtype.itemsize)
        return KVLayout(shape, spec.kv_dtype, pages * spec.num_kv_heads * unit)

    def allocate(self, num_blocks: int) -> Tensor:
        """Memory that nothing touched yet, in large pages where the system has them."""
        layout = self.kv_layout()
        memory = allocate(num_blocks * layout.bytes_per_block)
        return memory.view(self._kv_dtype).view(num_blocks, *layout.shape)

    def plan(self, step: StepMetadata) -> NativePlan:
        native = self._spare.pop() if self._spare else _NativePlan(self.spec)
        plan = NativePlan(native, self._spare)
        self.replan(plan, step)
        if self._noted is not None:
            self._noted.append((self, plan))
        return plan

    def replan(self, plan: NativePlan, step: StepMetadata) -> None:
        """Fill `plan` for another step. Nothing of `step` is needed afterwards."""
        table = step.block_table
        if table.shape[1] > 1 and table.stride(1) != 1:
            table = table.contiguous()
        _fill_plan(
            plan.address,
            step.query_start.data_ptr(),
            step.lengths.data_ptr(),
            table.data_ptr(),
            table.stride(0),
            step.slots.data_ptr(),
            len(step.lengths),
            len(step.slots),
            self._share,
        )

    def forward(
        self, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, cache: Tensor, plan: NativePlan
    ) -> tuple[Tensor, Tensor]:
        """
        Raises:
            NotRecordable: a tape is recorded, and the numbers of a head are no neighbours, or T
                is not the tape's.
        """
        assert q_THD.dtype == k_TKD.dtype == v_TKD.dtype == self._dtype
        q_THD, k_TKD, v_TKD = _rows(q_THD), _rows(k_TKD), _rows(v_TKD)
        out_THD = empty(q_THD.shape, self._dtype)
        if _attention(
            plan.address,
            q_THD.data_ptr(),
            q_THD.stride(0),
            q_THD.stride(1),
            k_TKD.data_ptr(),
            k_TKD.stride(0),
            k_TKD.stride(1),
            v_TKD.data_ptr(),
            v_TKD.stride(0),
            v_TKD.stride(1),
            cache.data_ptr(),
            out_THD.data_ptr(),
            len(q_THD),
        ):
            raise NotRecordable(f"attention with {len(q_THD)} tokens")
        return out_THD, cache

    def copy_blocks(self, cache: Tensor, pairs: Sequence[tuple[int, int]]) -> Tensor:
        if pairs:
            sources, targets = torch.tensor(pairs).unbind(1)
            cache.index_copy_(0, targets, cache.index_select(0, sources))
        return cache


def _rows(x: Tensor) -> Tensor:
    """x, or a copy of it where the numbers of a head are no neighbours."""
    if x.stride(2) == 1 or x.shape[2] == 1:
        return x
    if recording():
        raise NotRecordable(f"attention of rows with strides {x.stride()}")
    return x.contiguous()
