"""Paged attention, by the device's own kernel.

Shape legend: T tokens of the step, H query heads, K key/value heads, D head dim, S tokens a block.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.platform import AttentionBackend, AttentionSpec, KVLayout, StepMetadata
from engine_sim import kernel

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BLOCK_SIZES = (16, 8, 32, 64)


class SimAttention(AttentionBackend):
    """A cache is [blocks, 2, S, K, D]: keys, then values."""

    def __init__(self, spec: AttentionSpec, device: str) -> None:
        super().__init__(spec, device)
        kernel.register()
        self._run = torch.ops.sim.paged_attention.default

    @classmethod
    def unsupported(cls, spec: AttentionSpec) -> str | None:
        if spec.block_size not in BLOCK_SIZES:
            return f"blocks of {spec.block_size} tokens; it has {BLOCK_SIZES}"
        if not {spec.dtype, spec.kv_dtype} <= DTYPES.keys():
            return f"{spec.dtype} over {spec.kv_dtype}; it has {', '.join(DTYPES)}"
        return None

    def kv_layout(self) -> KVLayout:
        spec = self.spec
        shape = (2, spec.block_size, spec.num_kv_heads, spec.head_dim)
        num_bytes = torch.Size(shape).numel() * DTYPES[spec.kv_dtype].itemsize
        return KVLayout(shape, spec.kv_dtype, num_bytes)

    def allocate(self, num_blocks: int) -> Tensor:
        shape, dtype = self.kv_layout().shape, DTYPES[self.spec.kv_dtype]
        return torch.empty(num_blocks, *shape, dtype=dtype, device=self.device)

    def plan(self, step: StepMetadata) -> StepMetadata:
        """Nothing to prepare: the kernel reads the step's tensors."""
        return step

    def forward(
        self, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, cache: Tensor, plan: StepMetadata
    ) -> tuple[Tensor, Tensor]:
        spec = self.spec
        out_THD: Tensor = self._run(
            q_THD,
            k_TKD,
            v_TKD,
            cache,
            plan.query_start,
            plan.lengths,
            plan.block_table,
            plan.slots,
            spec.scale,
            spec.window or 0,
            spec.soft_cap or 0.0,
        )
        return out_THD, cache

    def copy_blocks(self, cache: Tensor, pairs: Sequence[tuple[int, int]]) -> Tensor:
        sources, targets = torch.tensor(pairs).to(self.device).unbind(1)
        return cache.index_copy_(0, targets, cache.index_select(0, sources))
