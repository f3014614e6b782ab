"""Paged attention as the Acme NPU likes it: one request after the other.

Shape legend: N blocks, S tokens a block, K key/value heads, G query heads a key/value head,
H = K * G query heads, D head dim, T tokens of the step, Q of them one request's, L tokens of it in
the cache.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.platform import AttentionBackend, AttentionSpec, KVLayout, StepMetadata

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BLOCK_SIZES = (32, 128)


@dataclass(slots=True)
class AcmeCache:
    """Keys are kept transposed. A step that takes a cache gives a new one back and this one up,
    as a compiled program does with a donated buffer."""

    k_NKDS: Tensor
    v_NKSD: Tensor
    given_up: bool = False

    def take(self) -> "AcmeCache":
        if self.given_up:
            raise RuntimeError("this cache was given up: use the one that the last step returned")
        self.given_up = True
        return AcmeCache(self.k_NKDS, self.v_NKSD)


@dataclass(frozen=True, slots=True)
class AcmePlan:
    """A step as the device's command queue wants it: on the host."""

    rows: tuple[tuple[int, int, int, Tensor], ...]  # (first row, end, length, blocks) by request
    blocks: Tensor  # [T] int64: where each token's keys and values go
    offsets: Tensor  # [T] int64


class AcmeAttention(AttentionBackend):
    @classmethod
    def unsupported(cls, spec: AttentionSpec) -> str | None:
        if spec.block_size not in BLOCK_SIZES:
            return f"blocks of {spec.block_size} tokens; it has {BLOCK_SIZES}"
        if not {spec.dtype, spec.kv_dtype} <= DTYPES.keys():
            return f"{spec.dtype} over {spec.kv_dtype}; it has {', '.join(DTYPES)}"
        if spec.soft_cap is not None:
            return "a soft cap on scores"
        return None

    def kv_layout(self) -> KVLayout:
        """Both halves of a block count, though they are tensors of their own."""
        spec = self.spec
        shape = (2, spec.num_kv_heads, spec.head_dim, spec.block_size)
        elements = 2 * spec.num_kv_heads * spec.head_dim * spec.block_size
        return KVLayout(shape, spec.kv_dtype, elements * DTYPES[spec.kv_dtype].itemsize)

    def allocate(self, num_blocks: int) -> AcmeCache:
        spec = self.spec
        heads, size, dim = spec.num_kv_heads, spec.block_size, spec.head_dim
        kind = {"dtype": DTYPES[spec.kv_dtype], "device": self.device}
        return AcmeCache(
            torch.empty(num_blocks, heads, dim, size, **kind),
            torch.empty(num_blocks, heads, size, dim, **kind),
        )

    def plan(self, step: StepMetadata) -> AcmePlan:
        size = self.spec.block_size
        starts, lengths = step.query_start.tolist(), step.lengths.tolist()
        rows = tuple(
            (starts[i], starts[i + 1], length, step.block_table[i, : -(-length // size)].long())
            for i, length in enumerate(lengths)
        )
        return AcmePlan(rows, step.slots // size, step.slots % size)

    def forward(
        self, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, cache: AcmeCache, plan: AcmePlan
    ) -> tuple[Tensor, AcmeCache]:
        cache = cache.take()
        cache.k_NKDS[plan.blocks, :, :, plan.offsets] = k_TKD.to(cache.k_NKDS.dtype)
        cache.v_NKSD[plan.blocks, :, plan.offsets] = v_TKD.to(cache.v_NKSD.dtype)
        parts = [
            self._attend(q_THD[start:stop], cache, blocks, length)
            for start, stop, length, blocks in plan.rows
        ]
        return torch.cat(parts).to(q_THD.dtype), cache

    def copy_blocks(self, cache: AcmeCache, pairs: Sequence[tuple[int, int]]) -> AcmeCache:
        cache = cache.take()
        sources, targets = (list(side) for side in zip(*pairs, strict=True))
        cache.k_NKDS[targets] = cache.k_NKDS[sources]
        cache.v_NKSD[targets] = cache.v_NKSD[sources]
        return cache

    def _attend(self, q_QHD: Tensor, cache: AcmeCache, blocks: Tensor, length: int) -> Tensor:
        """The request's rows, which are the last of its `length` tokens: [Q, H, D] float32."""
        spec, count = self.spec, q_QHD.shape[0]
        k_KDL = cache.k_NKDS[blocks].permute(1, 2, 0, 3).flatten(2)[..., :length].float()
        v_KLD = cache.v_NKSD[blocks].transpose(0, 1).flatten(1, 2)[:, :length].float()
        groups = spec.num_heads // spec.num_kv_heads
        q_KGQD = q_QHD.float().unflatten(1, (spec.num_kv_heads, groups)).permute(1, 2, 0, 3)
        scores_KGQL = q_KGQD @ k_KDL.unsqueeze(1) * spec.scale
        back_QL = (
            torch.arange(length - count, length, device=q_QHD.device)[:, None]
            - torch.arange(length, device=q_QHD.device)[None, :]
        )
        hidden_QL = back_QL < 0
        if spec.window is not None:
            hidden_QL |= back_QL >= spec.window
        weights_KGQL = scores_KGQL.masked_fill(hidden_QL, float("-inf")).softmax(-1)
        out_KGQD = weights_KGQL @ v_KLD.unsqueeze(1)
        return out_KGQD.permute(2, 0, 1, 3).flatten(1, 2)
