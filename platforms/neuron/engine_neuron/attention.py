"""Paged attention whose every step of one shape is one program.

Shape legend: T tokens of the step, N requests, H query heads, K key/value heads, G = H / K, D head
dim, S tokens a block, B entries of a block table, L = B times S, Q rows of one prompt, P pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from engine.compiled import ProgramMaker
from engine.platform import AttentionBackend, AttentionSpec, KVLayout, StepMetadata
from engine_neuron import installed, kernels
from engine_neuron.blocks import BlockPrograms

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float16": torch.float16}
BLOCK_SIZES = (32, 16, 64, 128)
PAD = -1  # in block tables and slots
#: Heads apart within a block, so that a head's part of a block is a block for the kernel. The last
#: block is nobody's: what is computed for padding is stored there.
Cache: TypeAlias = tuple[Tensor, Tensor]  # keys, values: [blocks + 1, K, S, D]


@dataclass(frozen=True, slots=True)
class Plan:
    """Of one step. Where tokens are stored, and what its requests see."""

    step: StepMetadata
    blocks_T: Tensor  # of each token; PAD where it is padding
    offsets_T: Tensor  # in its block
    table_NB: Tensor  # without PAD: what that stands for is not seen
    decode: bool


class TorchAttention(AttentionBackend):
    """In torch's operations, which the vendor's compiler makes into programs as a whole."""

    def __init__(self, spec: AttentionSpec, device: str, maker: ProgramMaker) -> None:
        super().__init__(spec, device)
        self._blocks = BlockPrograms(maker, device)

    @classmethod
    def unsupported(cls, spec: AttentionSpec) -> str | None:
        if spec.block_size not in BLOCK_SIZES:
            return f"blocks of {spec.block_size} tokens; it has {BLOCK_SIZES}"
        if not {spec.dtype, spec.kv_dtype} <= DTYPES.keys():
            return f"{spec.dtype} over {spec.kv_dtype}; it has {', '.join(DTYPES)}"
        return None

    def kv_layout(self) -> KVLayout:
        spec = self.spec
        shape = (2, spec.num_kv_heads, spec.block_size, spec.head_dim)
        num_bytes = torch.Size(shape).numel() * DTYPES[spec.kv_dtype].itemsize
        return KVLayout(shape, spec.kv_dtype, num_bytes)

    def allocate(self, num_blocks: int) -> Cache:
        """The programs that clear and copy its blocks are made with it: nothing runs without one.

        It begins as zeros: the kernels multiply what they do not see by 0, and memory that others
        used may hold NaN.
        """
        shape, dtype = self.kv_layout().shape[1:], DTYPES[self.spec.kv_dtype]
        keys, values = (
            torch.empty(num_blocks + 1, *shape, dtype=dtype, device=self.device) for _ in range(2)
        )
        self._blocks.begin(keys, values)
        return keys, values

    def plan(self, step: StepMetadata) -> Plan:
        """Of tensors alone, so that it is part of the program."""
        size = self.spec.block_size
        return Plan(
            step,
            blocks_T=step.slots.div(size, rounding_mode="floor"),
            offsets_T=step.slots % size,
            table_NB=step.block_table.clamp(min=0),
            decode=step.num_decodes == step.block_table.shape[0],
        )

    def forward(
        self, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, cache: Cache, plan: Plan
    ) -> tuple[Tensor, Cache]:
        self._store(k_TKD, v_TKD, cache, plan)
        if plan.decode:
            return self._decode(q_THD, k_TKD, v_TKD, cache, plan), cache
        return self._prompts(q_THD, k_TKD, v_TKD, cache, plan), cache

    def copy_blocks(self, cache: Cache, pairs: Sequence[tuple[int, int]]) -> Cache:
        self._blocks.copy(*cache, pairs)
        return cache

    def _store(self, k_TKD: Tensor, v_TKD: Tensor, cache: Cache, plan: Plan) -> None:
        """Into whole tensors, never through a view. PAD, -1, is the last block."""
        heads_K = torch.arange(self.spec.num_kv_heads, device=k_TKD.device)
        places = (plan.blocks_T[:, None], heads_K, plan.offsets_T[:, None])
        for part, x_TKD in zip(cache, (k_TKD, v_TKD), strict=True):
            part.index_put_(places, self._stored(x_TKD).to(part.dtype))

    def _stored(self, x_TKD: Tensor) -> Tensor:
        return x_TKD

    # One token of each request

    def _decode(
        self, q_NHD: Tensor, k_NKD: Tensor, v_NKD: Tensor, cache: Cache, plan: Plan
    ) -> Tensor:
        spec, lengths_N = self.spec, plan.step.lengths
        places_L = torch.arange(plan.table_NB.shape[1] * spec.block_size, device=q_NHD.device)
        back_NL = lengths_N[:, None] - 1 - places_L
        written_NL = back_NL >= 0
        k_NKLD, v_NKLD = (_gathered(part, plan.table_NB).float() for part in cache)
        # What nobody stored may be NaN, which a weight of 0 does not undo.
        v_NKLD = v_NKLD.masked_fill(~written_NL[:, None, :, None], 0)
        q_NKGD = _grouped(q_NHD.float(), spec.num_kv_heads)
        scores_NKGL = self._scores(torch.einsum("nkgd,nkld->nkgl", q_NKGD, k_NKLD))
        hidden_NL = ~written_NL if spec.window is None else ~written_NL | (back_NL >= spec.window)
        scores_NKGL = scores_NKGL.masked_fill(hidden_NL[:, None, None], -torch.inf)
        out_NKGD = torch.einsum("nkgl,nkld->nkgd", scores_NKGL.softmax(-1), v_NKLD)
        return out_NKGD.flatten(1, 2).to(q_NHD.dtype)

    def _scores(self, products: Tensor) -> Tensor:
        scores, cap = products * self.spec.scale, self.spec.soft_cap
        return scores if cap is None else cap * torch.tanh(scores / cap)

    # Rows of prompts

    def _prompts(
        self, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, cache: Cache, plan: Plan
    ) -> Tensor:
        """Request after request, each in a window of as many rows as the longest may have.

        rows of the step  |-- first --|---- second ----|--- padding ---|
        second's window               |---- second ----|-- unread --|
        """
        step, count = plan.step, q_THD.shape[0]
        window = min(step.max_query, count)
        rows_T = torch.arange(count, device=q_THD.device)
        rows_Q = rows_T[:window]
        out_THD: Tensor | None = None
        for i in range(plan.table_NB.shape[0]):
            first, stop = step.query_start[i], step.query_start[i + 1]
            places_Q = (first + rows_Q).clamp(max=count - 1)
            # What was computed for padding, or belongs to others, may be NaN.
            own_Q11 = (rows_Q < stop - first)[:, None, None]
            k_QKD, v_QKD = (
                torch.where(own_Q11, x.index_select(0, places_Q), 0) for x in (k_TKD, v_TKD)
            )
            prior = step.lengths[i] - (stop - first)
            q_QHD = q_THD.index_select(0, places_Q)
            part_QHD = self._prompt(q_QHD, k_QKD, v_QKD, cache, plan.table_NB[i], prior)
            if out_THD is None:
                out_THD = part_QHD.index_select(0, rows_T.clamp(max=window - 1))
                continue
            mine_T = (rows_T >= first) & (rows_T < stop)
            shifted_THD = part_QHD.index_select(0, (rows_T - first).clamp(0, window - 1))
            out_THD = torch.where(mine_T[:, None, None], shifted_THD, out_THD)
        assert out_THD is not None, "a step without requests"
        return out_THD

    def _prompt(
        self,
        q_QHD: Tensor,
        k_QKD: Tensor,
        v_QKD: Tensor,
        cache: Cache,
        table_B: Tensor,
        prior: Tensor,
    ) -> Tensor:
        """Rows of one prompt, the first `prior` tokens of which are in the cache already."""
        k_prior_KLD, v_prior_KLD = _prior(cache, table_B, prior)
        spec, num_prior = self.spec, k_prior_KLD.shape[1]
        # New keys and values are rounded as those that are read back.
        k_KED, v_KED = (
            torch.cat([prior_KLD, x_QKD.transpose(0, 1).to(prior_KLD.dtype)], 1).float()
            for prior_KLD, x_QKD in ((k_prior_KLD, k_QKD), (v_prior_KLD, v_QKD))
        )
        rows_Q = torch.arange(len(q_QHD), device=q_QHD.device)
        prior_L = torch.arange(num_prior, device=q_QHD.device)
        back_QE = torch.cat(
            [prior + rows_Q[:, None] - prior_L, rows_Q[:, None] - rows_Q[None, :]], dim=1
        )
        empty_E = torch.cat([prior_L >= prior, rows_Q < 0])
        hidden_QE = (back_QE < 0) | empty_E
        if spec.window is not None:
            hidden_QE = hidden_QE | (back_QE >= spec.window)
        q_QKGD = _grouped(q_QHD.float(), spec.num_kv_heads)
        scores_KGQE = self._scores(torch.einsum("qkgd,ked->kgqe", q_QKGD, k_KED))
        weights_KGQE = scores_KGQE.masked_fill(hidden_QE, -torch.inf).softmax(-1)
        out_QKGD = torch.einsum("kgqe,ked->qkgd", weights_KGQE, v_KED)
        return out_QKGD.flatten(1, 2).to(q_QHD.dtype)


class NkiAttention(TorchAttention):
    """By the vendor's kernels: `attention_tkg` for single tokens, `attention_cte` for prompts."""

    def __init__(self, spec: AttentionSpec, device: str, maker: ProgramMaker) -> None:
        super().__init__(spec, device, maker)
        self._kernels = kernels.load(device)

    @classmethod
    def unsupported(cls, spec: AttentionSpec) -> str | None:
        if why := super().unsupported(spec) or installed.missing_kernels():
            return why
        if spec.window is not None or spec.soft_cap is not None:
            return "a sliding window or a soft cap, which the kernels have not, or count otherwise"
        if spec.dtype != spec.kv_dtype:
            return f"{spec.dtype} over a cache of {spec.kv_dtype}; the kernels have one dtype"
        if spec.head_dim > 128:
            return f"heads of {spec.head_dim} dimensions; the kernels have up to 128"
        if spec.num_heads // spec.num_kv_heads > 16:
            return "more than 16 query heads for one of keys and values"
        return None

    def _stored(self, x_TKD: Tensor) -> Tensor:
        """The kernels multiply what they do not see by 0: a cache must hold finite numbers only."""
        return torch.where(x_TKD.isfinite(), x_TKD, 0)

    def _decode(
        self, q_NHD: Tensor, k_NKD: Tensor, v_NKD: Tensor, cache: Cache, plan: Plan
    ) -> Tensor:
        """For the kernel each head of keys is a request of its own, with blocks of its own."""
        heads = self.spec.num_kv_heads
        heads_K = torch.arange(heads, device=q_NHD.device, dtype=plan.table_NB.dtype)
        table_NKB = plan.table_NB[:, None] * heads + heads_K[:, None]
        position_N = plan.step.lengths - 1
        out = self._kernels.token(
            _grouped(q_NHD * self.spec.scale, heads).flatten(0, 1),
            k_NKD.flatten(0, 1),
            v_NKD.flatten(0, 1),
            cache[0].flatten(0, 1),
            cache[1].flatten(0, 1),
            table_NKB.flatten(0, 1),
            position_N.repeat_interleave(heads, output_size=heads * position_N.shape[0]),
        )
        return out.view(q_NHD.shape)

    def _prompt(
        self,
        q_QHD: Tensor,
        k_QKD: Tensor,
        v_QKD: Tensor,
        cache: Cache,
        table_B: Tensor,
        prior: Tensor,
    ) -> Tensor:
        k_prior_KLD, v_prior_KLD = _prior(cache, table_B, prior)
        out_HQD = self._kernels.context(
            (q_QHD * self.spec.scale).transpose(0, 1).contiguous(),
            k_QKD.transpose(0, 1).contiguous(),
            v_QKD.transpose(0, 1).contiguous(),
            k_prior_KLD.contiguous(),
            v_prior_KLD.contiguous(),
            prior.reshape(1),
        )
        return out_HQD.transpose(0, 1)


def _grouped(q_THD: Tensor, num_kv_heads: int) -> Tensor:
    """[T, K, G, D]."""
    count, heads, dim = q_THD.shape
    return q_THD.reshape(count, num_kv_heads, heads // num_kv_heads, dim)


def _gathered(part: Tensor, table_NB: Tensor) -> Tensor:
    """[N, K, L, D] of the blocks that each table names."""
    return part[table_NB].transpose(1, 2).flatten(2, 3)


def _prior(cache: Cache, table_B: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values [K, L, D] of the blocks; 0 where no token is stored yet."""
    k_KLD, v_KLD = (_gathered(part, table_B[None])[0] for part in cache)
    stored_L1 = (torch.arange(k_KLD.shape[1], device=k_KLD.device) < prior)[:, None]
    return torch.where(stored_L1, k_KLD, 0), torch.where(stored_L1, v_KLD, 0)
