"""`PagedAttention`: the backend that platforms offer to the engine.

T tokens, N requests, H query heads, K key/value heads, D head dim, S tokens a block.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.platform import AttentionSpec, StepMetadata
from engine_triton.architecture import Architecture
from engine_triton.attention.decode import Decode, DecodePlan
from engine_triton.attention.paged import PagedCache
from engine_triton.attention.prefill import Prefill, PrefillPlan

#: Numbers of one head that tiles have room for.
MOST_HEAD_DIM = 256


@dataclass(frozen=True, slots=True)
class Plan:
    """Of one step. Its tensors are on the device, and nothing in it depends on what they hold."""

    slots: Tensor  # [T] int64
    lengths: Tensor  # [N] int32
    block_table: Tensor  # [N, B] int32
    decode: DecodePlan | None
    prefill: PrefillPlan | None


class PagedAttention(PagedCache):
    """Requests with one row are the decode kernel's, all others the prefill kernel's. `plan`
    depends on sizes only: a captured graph may hold all of it."""

    def __init__(
        self, spec: AttentionSpec, device: str, architecture: Architecture | None = None
    ) -> None:
        super().__init__(spec, device, architecture)
        self._decode = Decode(spec, self._architecture, self._form)
        self._prefill = Prefill(spec, self._architecture, self._form)

    @classmethod
    def unsupported(cls, spec: AttentionSpec) -> str | None:
        if spec.head_dim > MOST_HEAD_DIM:
            return f"head_dim is at most {MOST_HEAD_DIM}, got {spec.head_dim}"
        return super().unsupported(spec)

    def plan(self, step: StepMetadata) -> Plan:
        table = step.block_table
        table = table if table.stride(1) == 1 else table.contiguous()
        decodes, requests = step.num_decodes, step.lengths.shape[0]
        decode = self._decode.plan(decodes, step.max_length, table.device) if decodes else None
        prefill = self._prefill.plan(step) if requests > decodes else None
        return Plan(step.slots, step.lengths, table, decode, prefill)

    def attend(self, q_THD: Tensor, cache: Tensor, plan: Plan) -> Tensor:
        out_THD = torch.empty(q_THD.shape, dtype=q_THD.dtype, device=q_THD.device)
        seen = cache.view(self._form.reading)
        if plan.decode is not None:
            self._decode(q_THD, seen, plan.block_table, plan.lengths, plan.decode, out_THD)
        if plan.prefill is not None:
            self._prefill(q_THD, seen, plan.block_table, plan.lengths, plan.prefill, out_THD)
        return out_THD
