"""Attention over a paged cache, with torch operations only.

Shape legend: T tokens of the step, N requests of a group, H query heads, K key/value heads, G = H/K
query heads that share one, D head dim, S tokens a block, C blocks of a chunk, R query rows of a
piece, L keys, P blocks of the cache, b = N*K.

The cache of a layer is one tensor [P, 2, K, S, D], keys before values: the S tokens of one block
and head lie side by side, so that gathering the blocks of a request copies S*D numbers at a time
and gives [K, L, D], ready for batched matrix products.

    requests with one token   gathered in groups of similar length, then matmul, softmax, matmul in
                              float32: faster than torch's fused attention with a single row
    the others, one by one    torch's fused attention, in pieces of R rows where a cached prefix or
                              a window needs a mask; where scores are capped matmul, softmax, matmul
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from engine.platform import AttentionBackend, AttentionSpec, KVLayout, StepMetadata
from engine_cpu.plan import Decodes, Plan, Prompt, make_plan

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
#: Numbers gathered at a time: small enough to be still in the processor's cache when multiplied.
WORKSPACE = 2**20
#: Keys and values of one prompt, in numbers, that may be gathered at a time, of one head at least.
PROMPT_WORKSPACE = 2**24


class PagedAttention(AttentionBackend):
    """Computes at once: what `forward` returns is ready."""

    def __init__(self, spec: AttentionSpec, device: str) -> None:
        super().__init__(spec, device)
        self._dtype = DTYPES[spec.dtype]
        self._kv_dtype = DTYPES[spec.kv_dtype]
        self._group = spec.num_heads // spec.num_kv_heads
        block = spec.num_kv_heads * spec.block_size * spec.head_dim
        size = max(WORKSPACE, block)
        # Memory that is used again needs no page faults: these are half of a gather's time.
        self._gathered = torch.empty(size, dtype=self._kv_dtype)
        self._widened = (
            self._gathered
            if self._kv_dtype == torch.float32
            else torch.empty(size, dtype=torch.float32)
        )

    @classmethod
    def unsupported(cls, spec: AttentionSpec) -> str | None:
        for name, value in (("dtype", spec.dtype), ("kv_dtype", spec.kv_dtype)):
            if value not in DTYPES:
                return f"{name} {value!r} is not one of {', '.join(DTYPES)}"
        sizes = (spec.num_heads, spec.num_kv_heads, spec.head_dim, spec.block_size)
        if min(sizes) < 1:
            return f"heads, head_dim and block_size must be at least 1, got {sizes}"
        if spec.num_heads % spec.num_kv_heads:
            return f"{spec.num_heads} heads cannot share {spec.num_kv_heads} key/value heads evenly"
        if spec.window is not None and spec.window < 1:
            return f"window must be at least 1, got {spec.window}"
        return None

    def kv_layout(self) -> KVLayout:
        spec = self.spec
        shape = (2, spec.num_kv_heads, spec.block_size, spec.head_dim)
        count = 2 * spec.num_kv_heads * spec.block_size * spec.head_dim
        return KVLayout(shape, spec.kv_dtype, count * self._kv_dtype.itemsize)

    def allocate(self, num_blocks: int) -> Tensor:
        """Memory that nothing touched yet: what a request did not write is never added up."""
        return torch.empty(num_blocks, *self.kv_layout().shape, dtype=self._kv_dtype)

    def plan(self, step: StepMetadata) -> Plan:
        return make_plan(self.spec, step, WORKSPACE)

    def forward(
        self, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, cache: Tensor, plan: Plan
    ) -> tuple[Tensor, Tensor]:
        self._store(k_TKD, v_TKD, cache, plan)
        out_THD = torch.empty_like(q_THD, memory_format=torch.contiguous_format)
        for group in plan.decodes:
            out_THD[group.rows] = self._decode(q_THD[group.rows], cache, group).to(self._dtype)
        for prompt in plan.prompts:
            self._prefill(q_THD, (k_TKD, v_TKD), cache, prompt, out_THD)
        return out_THD, cache

    def copy_blocks(self, cache: Tensor, pairs: Sequence[tuple[int, int]]) -> Tensor:
        if pairs:
            sources, targets = torch.tensor(pairs).unbind(1)
            cache.index_copy_(0, targets, cache.index_select(0, sources))
        return cache

    def _store(self, k_TKD: Tensor, v_TKD: Tensor, cache: Tensor, plan: Plan) -> None:
        if plan.stored is not None:
            k_TKD, v_TKD = k_TKD[plan.stored], v_TKD[plan.stored]
        lines = cache.view(-1, self.spec.head_dim)
        for x_TKD, places in ((k_TKD, plan.k_lines), (v_TKD, plan.v_lines)):
            values = x_TKD.to(self._kv_dtype).reshape(-1, self.spec.head_dim)
            lines.index_copy_(0, places, values)

    # Requests with one token

    def _decode(self, q_NHD: Tensor, cache: Tensor, group: Decodes) -> Tensor:
        """[N, H, D] -> [N, H, D] float32."""
        spec = self.spec
        batch = len(q_NHD) * spec.num_kv_heads
        q_bGD = q_NHD.reshape(batch, self._group, spec.head_dim).float() * spec.scale
        blocks = cache.view(-1, spec.block_size * spec.head_dim)
        keys = (self._gather(blocks, index, batch) for index in group.k_strips)
        chunks = [torch.bmm(q_bGD, k_bLD.transpose(1, 2)) for k_bLD in keys]
        scores_bGL = chunks[0] if len(chunks) == 1 else torch.cat(chunks, dim=-1)
        weights_bGL = self._softmax(scores_bGL, group)
        out_bGD, start = torch.zeros_like(q_bGD), 0
        for index in group.v_strips:
            v_bLD = self._gather(blocks, index, batch)
            stop = start + v_bLD.shape[1]
            if stop > group.hidden_from:
                # No weight falls on hidden tokens, but zero times NaN would be NaN.
                first = max(start, group.hidden_from)
                places = slice(first - group.hidden_from, stop - group.hidden_from)
                hidden = group.hidden_NL[:, None, places, None]
                v_NKLD = v_bLD.view(len(q_NHD), spec.num_kv_heads, -1, spec.head_dim)
                v_NKLD[:, :, first - start :].masked_fill_(hidden, 0)
            out_bGD.baddbmm_(weights_bGL[:, :, start:stop], v_bLD)
            start = stop
        return out_bGD.view(q_NHD.shape)

    def _softmax(self, scores_bGL: Tensor, group: Decodes) -> Tensor:
        if self.spec.soft_cap is not None:
            scores_bGL.div_(self.spec.soft_cap).tanh_().mul_(self.spec.soft_cap)
        scores_NHL = scores_bGL.view(len(group.rows), self.spec.num_heads, -1)
        scores_NHL[:, :, group.hidden_from :].masked_fill_(group.hidden_NL[:, None], float("-inf"))
        return torch.softmax(scores_bGL, dim=-1)

    def _gather(self, blocks: Tensor, index: Tensor, batch: int) -> Tensor:
        """Some blocks of the cache, in float32: [batch, tokens, D]."""
        width = blocks.shape[1]
        count = len(index) * width
        gathered = self._gathered[:count].view(-1, width)
        torch.index_select(blocks, 0, index, out=gathered)
        if self._widened is not self._gathered:
            gathered = self._widened[:count].view(-1, width).copy_(gathered)
        return gathered.view(batch, -1, self.spec.head_dim)

    # Requests with several tokens

    def _prefill(
        self, q_THD: Tensor, new: tuple[Tensor, Tensor], cache: Tensor, prompt: Prompt, out: Tensor
    ) -> None:
        """Writes the prompt's rows of `out` [T, H, D]. `new`: the step's keys and values."""
        heads, length = self.spec.num_kv_heads, max(piece.last_key for piece in prompt.pieces)
        at_once = max(1, PROMPT_WORKSPACE // (2 * length * self.spec.head_dim))
        for first in range(0, heads, at_once):
            chosen = slice(first, min(heads, first + at_once))
            k_KLD, v_KLD = self._prompt_keys(new, cache, prompt, chosen)
            shared = slice(chosen.start * self._group, chosen.stop * self._group)
            for piece in prompt.pieces:
                keys = slice(piece.first_key, piece.last_key)
                q_RHD = q_THD[piece.start : piece.stop, shared]
                out[piece.start : piece.stop, shared] = self._attend(
                    q_RHD, k_KLD[:, keys], v_KLD[:, keys], piece.mask_RL
                )

    def _prompt_keys(
        self, new: tuple[Tensor, Tensor], cache: Tensor, prompt: Prompt, heads: slice
    ) -> tuple[Tensor, Tensor]:
        """Keys and values [K, L, D] of some heads, as the cache has them: rounded to its dtype."""
        if prompt.strips is None:
            own = (x_TKD[prompt.start : prompt.stop, heads].transpose(0, 1) for x_TKD in new)
            k_KLD, v_KLD = (x_KLD.to(self._kv_dtype).to(self._dtype) for x_KLD in own)
            return k_KLD, v_KLD
        strips = cache.view(-1, self.spec.block_size * self.spec.head_dim)
        places_KB = torch.arange(heads.start, heads.stop)[:, None] + prompt.strips
        k_KLD, v_KLD = (
            strips.index_select(0, (places_KB + first).flatten())
            .to(self._dtype)
            .view(len(places_KB), -1, self.spec.head_dim)
            for first in (0, self.spec.num_kv_heads)
        )
        return k_KLD, v_KLD

    def _attend(
        self, q_RHD: Tensor, k_KLD: Tensor, v_KLD: Tensor, mask_RL: Tensor | None
    ) -> Tensor:
        """[R, H, D] -> [R, H, D]. The mask is for rows in reverse order."""
        # Heads that share a key/value head are a second dimension, so that keys need no copies.
        q_KGRD = q_RHD.view(len(q_RHD), -1, self._group, self.spec.head_dim).permute(1, 2, 0, 3)
        if mask_RL is not None:
            q_KGRD = q_KGRD.flip(2)
        if self.spec.soft_cap is not None:
            assert mask_RL is not None
            out_KGRD = self._attend_capped(q_KGRD, k_KLD, v_KLD, mask_RL)
        else:
            shape = (*q_KGRD.shape[:2], *k_KLD.shape[1:])
            out_KGRD = scaled_dot_product_attention(
                q_KGRD,
                k_KLD[:, None].expand(shape),
                v_KLD[:, None].expand(shape),
                attn_mask=mask_RL,
                is_causal=mask_RL is None,
                scale=self.spec.scale,
            )
        if mask_RL is not None:
            out_KGRD = out_KGRD.flip(2)
        return out_KGRD.permute(2, 0, 1, 3).flatten(1, 2)

    def _attend_capped(
        self, q_KGRD: Tensor, k_KLD: Tensor, v_KLD: Tensor, mask_RL: Tensor
    ) -> Tensor:
        assert self.spec.soft_cap is not None
        q_KrD = q_KGRD.flatten(1, 2).float() * (self.spec.scale / self.spec.soft_cap)
        scores_KrL = torch.bmm(q_KrD, k_KLD.float().transpose(1, 2)).tanh_()
        scores_KGRL = scores_KrL.mul_(self.spec.soft_cap).view(*q_KGRD.shape[:3], -1)
        weights_KGRL = torch.softmax(scores_KGRL.add_(mask_RL), dim=-1)
        out_KrD = torch.bmm(weights_KGRL.flatten(1, 2), v_KLD.float())
        return out_KrD.view(q_KGRD.shape).to(self._dtype)
