"""A device with static shapes, on CPU tensors: what a compiler of whole graphs asks of the core.

`graphs` holds every graph that its compiler was given. Attention gathers each token's whole bucket
of keys: slow, and the same program whatever the lengths are.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from engine.compiled import CompiledPlatform
from engine.errors import UnsupportedError
from engine.platform import (
    AttentionBackend,
    AttentionSpec,
    Availability,
    Capabilities,
    KVLayout,
    MemoryProfiler,
    PlatformSpec,
    ShapeBuckets,
    StepLimits,
    StepMetadata,
)
from engine.testing.null import NullMemory

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class WholeBucketAttention(AttentionBackend):
    @classmethod
    def unsupported(cls, spec: AttentionSpec) -> str | None:
        known = {spec.dtype, spec.kv_dtype} <= DTYPES.keys()
        return None if known else f"{spec.dtype} over {spec.kv_dtype}"

    def kv_layout(self) -> KVLayout:
        spec = self.spec
        shape = (2, spec.block_size, spec.num_kv_heads, spec.head_dim)
        return KVLayout(shape, spec.kv_dtype, math.prod(shape) * DTYPES[spec.kv_dtype].itemsize)

    def allocate(self, num_blocks: int) -> Tensor:
        """[2, blocks * block_size, K, D], poisoned: what nobody stored must not be read."""
        spec = self.spec
        shape = (2, num_blocks * spec.block_size, spec.num_kv_heads, spec.head_dim)
        return torch.full(shape, 1e4, dtype=DTYPES[spec.kv_dtype])

    def plan(self, step: StepMetadata) -> tuple[Tensor, Tensor, Tensor]:
        """Of each token: the slots of its request's bucket [T, L], which of them it sees; slots."""
        size, count = self.spec.block_size, len(step.slots)
        rows_T = torch.arange(count, device=step.slots.device)
        ends_N = step.query_start[1:]
        owner_T = torch.searchsorted(ends_N, rows_T, right=True).clamp(max=len(ends_N) - 1)
        position_T = step.lengths[owner_T] - (ends_N[owner_T] - rows_T)
        offsets_L = torch.arange(step.max_length)
        slots_TL = step.block_table[owner_T][:, offsets_L // size] * size + offsets_L % size
        back_TL = position_T[:, None] - offsets_L
        seen_TL = back_TL >= 0
        if self.spec.window is not None:
            seen_TL &= back_TL < self.spec.window
        return slots_TL.long(), seen_TL, step.slots

    def forward(
        self,
        q_THD: Tensor,
        k_TKD: Tensor,
        v_TKD: Tensor,
        cache: Tensor,
        plan: tuple[Tensor, Tensor, Tensor],
    ) -> tuple[Tensor, Tensor]:
        slots_TL, seen_TL, slots_T = plan
        spec = self.spec
        cache = cache.index_copy(1, slots_T, torch.stack([k_TKD, v_TKD]).to(cache.dtype))
        k_TLKD, v_TLKD = cache[0][slots_TL].float(), cache[1][slots_TL].float()
        q_TKGD = q_THD.float().unflatten(1, (spec.num_kv_heads, -1))
        scores_TKGL = torch.einsum("tkgd,tlkd->tkgl", q_TKGD, k_TLKD) * spec.scale
        if spec.soft_cap is not None:
            scores_TKGL = spec.soft_cap * torch.tanh(scores_TKGL / spec.soft_cap)
        scores_TKGL = scores_TKGL.masked_fill(~seen_TL[:, None, None], -1e30)
        weights_TKGL = scores_TKGL.softmax(-1)
        out_TKGD = torch.einsum("tkgl,tlkd->tkgd", weights_TKGL, v_TLKD)
        return out_TKGD.flatten(1, 2).to(q_THD.dtype), cache

    def copy_blocks(self, cache: Tensor, pairs: Sequence[tuple[int, int]]) -> Tensor:
        blocks = cache.unflatten(1, (-1, self.spec.block_size)).clone()
        sources, targets = (list(side) for side in zip(*pairs, strict=True))
        blocks[:, targets] = blocks[:, sources]
        return blocks.flatten(1, 2)


class StaticPlatform(CompiledPlatform):
    name = "static"
    torch_device = "cpu"
    attention_backends = (WholeBucketAttention,)
    capabilities = Capabilities(
        dtypes=("float32", "bfloat16"),
        kv_dtypes=("float32", "bfloat16"),
        block_sizes=(16, 8),
        mixed_batches=True,
        chunked_prefill=True,
        prefix_reuse=True,
        overlap=True,
        static_shapes=True,
        sampling="host",
    )

    def __init__(self, config, rank=0):
        super().__init__(config, rank)
        self.compiled: list[torch.fx.GraphModule] = []

    def dynamo_backend(self, graph, examples):
        self.compiled.append(graph)
        return graph.forward

    @property
    def compiler(self) -> str:
        return "counting 1"

    def make_buckets(self, limits: StepLimits) -> ShapeBuckets:
        return ShapeBuckets(
            tokens=tuple(sorted({min(64, limits.max_tokens), limits.max_tokens})),
            requests=(limits.max_requests,),
            decodes=tuple(sorted({min(4, limits.max_requests), limits.max_requests})),
            blocks=(limits.max_blocks,),
        )

    def memory(self) -> MemoryProfiler:
        return NullMemory()

    def attention(self, spec: AttentionSpec) -> AttentionBackend:
        if reason := WholeBucketAttention.unsupported(spec):
            raise UnsupportedError(reason)
        return WholeBucketAttention(spec, self.device)


def probe() -> Availability:
    return Availability(1, "a device with static shapes, on CPU tensors")


def static_spec() -> PlatformSpec:
    return PlatformSpec(name="static", api=(1, 2), probe=probe, create=StaticPlatform)
