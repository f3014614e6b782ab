"""Drives one attention backend through steps, and computes the right answer on the host.

T tokens, H query heads, K key/value heads, D head dim, L tokens of one request, S tokens a block.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.errors import UnsupportedError
from engine.platform import (
    AttentionBackend,
    AttentionSpec,
    KVCache,
    Packed,
    Platform,
    Prologue,
    StepMetadata,
)
from engine.testing.checks.numbers import DTYPES, generator, relative_error

#: What blocks hold before a case: far from any right key or value, and a number in every dtype.
STALE = 30.0


@dataclass(slots=True)
class Stream:
    """One request: all its queries, keys and values, and the blocks they go to."""

    q_LHD: Tensor  # after the prologue, where there is one
    k_LKD: Tensor
    v_LKD: Tensor
    blocks: list[int]
    computed: int
    raw: tuple[Tensor, Tensor] | None = None  # queries and keys before it

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.q_LHD, self.k_LKD, self.v_LKD


class Turned:
    """A prologue with weights and angles of its own; computed in float64, rounded once."""

    def __init__(self, asked: Prologue, spec: AttentionSpec, random: torch.Generator) -> None:
        self.asked = asked
        self._dtype = DTYPES[spec.dtype]
        self._norms_2D: Tensor | None = None
        if asked.norm_epsilon is not None:
            noise = torch.randn(2, spec.head_dim, generator=random)
            self._norms_2D = (1 + 0.1 * noise).to(self._dtype)
        exponents = torch.arange(0, asked.rotary_dim, 2).double() / max(1, asked.rotary_dim)
        self._frequencies_R = 10000.0**-exponents

    def __call__(self, q_LHD: Tensor, k_LKD: Tensor) -> tuple[Tensor, Tensor]:
        cos_LR, sin_LR = self._angles(0, len(q_LHD))
        return self._turn(q_LHD, 0, cos_LR, sin_LR), self._turn(k_LKD, 1, cos_LR, sin_LR)

    def packed(self, qkv_TX: Tensor, spans: Sequence[tuple[int, int]], device: str) -> Packed:
        cos, sin = zip(*(self._angles(start, stop) for start, stop in spans), strict=True)
        angles = (torch.cat(each).float().to(device) for each in (cos, sin))
        norms = () if self._norms_2D is None else self._norms_2D.to(device).unbind()
        return Packed(qkv_TX.to(device), *angles, *norms)

    def _angles(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        angles_LR = torch.arange(start, stop).double()[:, None] * self._frequencies_R
        return angles_LR.cos(), angles_LR.sin()

    def _turn(self, x_LHD: Tensor, side: int, cos_LR: Tensor, sin_LR: Tensor) -> Tensor:
        wide, half = x_LHD.double(), self.asked.rotary_dim // 2
        if self._norms_2D is not None:
            mean = wide.square().mean(-1, keepdim=True)
            wide = wide / (mean + (self.asked.norm_epsilon or 0)).sqrt() * self._norms_2D[side]
        first, second, rest = wide.tensor_split((half, 2 * half), dim=-1)
        cos, sin = cos_LR[:, None], sin_LR[:, None]
        turned = (first * cos - second * sin, second * cos + first * sin, rest)
        return torch.cat(turned, dim=-1).to(self._dtype)


class Paged:
    """A paged cache on the platform's device, for requests of random numbers.

    Blocks are handed out in random order, block 0 among them. `error` is the largest so far.

    Raises:
        UnsupportedError: the backend leaves `prologue` to the model.
    """

    def __init__(
        self,
        platform: Platform,
        spec: AttentionSpec,
        num_blocks: int,
        seed: str,
        prologue: Prologue | None = None,
    ) -> None:
        self.platform = platform
        self.spec = spec
        self.num_blocks = num_blocks
        self.error = 0.0
        self._random = generator(seed)
        self._backend = self.platform.attention(self.spec)
        if prologue is not None and not self._backend.fuses(prologue):
            raise UnsupportedError(f"the backend leaves this to the model: {prologue}")
        self._prologue = Turned(prologue, spec, self._random) if prologue is not None else None
        self._cache = self._backend.allocate(self.num_blocks)
        self._free = torch.randperm(self.num_blocks, generator=self._random).tolist()
        # Never what an earlier case left in the same memory, which might be right by chance.
        self._fill(range(self.num_blocks), STALE)

    def add(self, length: int, like: Stream | None = None, shared: int = 0) -> Stream:
        """A sequence of `length` tokens whose first `shared` ones are those of `like`.

        Full blocks of the shared part are shared; nothing of it is computed here.
        """
        spec = self.spec
        q_LHD = self._normal(length, spec.num_heads, spec.head_dim)
        k_LKD = self._normal(length, spec.num_kv_heads, spec.head_dim)
        v_LKD = self._normal(length, spec.num_kv_heads, spec.head_dim)
        raw = None
        if self._prologue is not None:
            raw = q_LHD, k_LKD
            q_LHD, k_LKD = self._prologue(q_LHD, k_LKD)
        blocks: list[int] = []
        if like is not None:
            for mine, theirs in zip((q_LHD, k_LKD, v_LKD), like.parts, strict=True):
                mine[:shared] = theirs[:shared]
            blocks = like.blocks[: shared // spec.block_size]
        computed = len(blocks) * spec.block_size
        missing = -(-length // spec.block_size) - len(blocks)
        blocks += [self._free.pop() for _ in range(missing)]
        return Stream(q_LHD, k_LKD, v_LKD, blocks, computed, raw)

    def fork(self, parent: Stream, length: int) -> Stream:
        """A sequence that goes on from what `parent` has computed, in copies of its blocks."""
        shared, size = parent.computed, self.spec.block_size
        made = self.add(length, parent, shared)
        first = shared // size  # full blocks are shared, only the rest is copied
        count = -(-shared // size)
        pairs = list(zip(parent.blocks[first:count], made.blocks[first:count], strict=True))
        if pairs:
            self._cache = self._backend.copy_blocks(self._cache, pairs)
        made.computed = shared
        return made

    def copy_everything(self, sequence: Stream) -> None:
        """Move the sequence to fresh blocks, and spoil the ones it leaves."""
        fresh = [self._free.pop() for _ in sequence.blocks]
        pairs = list(zip(sequence.blocks, fresh, strict=True))
        self._cache = self._backend.copy_blocks(self._cache, pairs)
        left, sequence.blocks = sequence.blocks, fresh
        self._fill(left, -STALE)

    def poison(self) -> None:
        """Fill every block with what spoils all it touches, even with a weight of 0."""
        self._fill(range(self.num_blocks), float("nan"))

    def step(self, *parts: tuple[Stream, int]) -> None:
        """Compute `count` further tokens of each sequence, and compare with the right answer."""
        ordered = sorted(parts, key=lambda part: part[1] > 1)  # one token first, as core does
        spans = [(one, one.computed, one.computed + count) for one, count in ordered]
        q, k, v = (
            torch.cat([one.parts[i][start:stop] for one, start, stop in spans]) for i in range(3)
        )
        where = [(one.blocks, start, stop) for one, start, stop in spans]
        if self._prologue is None:
            out = self._forward(q, k, v, where)
        else:
            out = self._forward_packed(spans, v, where, self._prologue)
        right = torch.cat([self._exact(one, start, stop) for one, start, stop in spans])
        assert out.dtype == DTYPES[self.spec.dtype], f"the result is {out.dtype}"
        self.error = max(self.error, relative_error(out, right))
        for one, _, stop in spans:
            one.computed = stop

    # Below: what the steps are made of

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._random).to(DTYPES[self.spec.dtype])

    def _fill(self, blocks: Sequence[int], value: float) -> None:
        self._cache = filled(self._backend, self._cache, blocks, value)

    def _forward(
        self, q: Tensor, k: Tensor, v: Tensor, spans: Sequence[tuple[list[int], int, int]]
    ) -> Tensor:
        """One step on the device; the result on the host."""
        device = self.platform.device
        plan = self._backend.plan(_metadata(spans, self.spec.block_size, device))
        out, self._cache = self._backend.forward(
            q.to(device), k.to(device), v.to(device), self._cache, plan
        )
        self.platform.synchronize()
        return out.cpu()

    def _forward_packed(
        self,
        parts: Sequence[tuple[Stream, int, int]],
        v_TKD: Tensor,
        spans: Sequence[tuple[list[int], int, int]],
        prologue: "Turned",
    ) -> Tensor:
        """The same, with the prologue left to the backend."""
        device = self.platform.device
        sides = zip(*(one.raw or () for one, _, _ in parts), strict=True)
        q_THD, k_TKD = (
            torch.cat([x[start:stop] for x, (_, start, stop) in zip(side, parts, strict=True)])
            for side in sides
        )
        qkv_TX = torch.cat([x.flatten(1) for x in (q_THD, k_TKD, v_TKD)], dim=1)
        packed = prologue.packed(qkv_TX, [(start, stop) for _, start, stop in parts], device)
        plan = self._backend.plan(_metadata(spans, self.spec.block_size, device))
        out, self._cache = self._backend.forward_packed(packed, prologue.asked, self._cache, plan)
        self.platform.synchronize()
        return out.cpu()

    def _exact(self, one: Stream, start: int, stop: int) -> Tensor:
        """Rows start:stop of plain causal attention in float64, on what the cache can hold."""
        spec = self.spec
        # Rounded to what the cache holds; integers are scaled in the platform's own way.
        kept = DTYPES.get(spec.kv_dtype, torch.float64)
        q_THD = one.q_LHD[start:stop].double()
        k_LKD, v_LKD = one.k_LKD[:stop].to(kept).double(), one.v_LKD[:stop].to(kept).double()
        group = spec.num_heads // spec.num_kv_heads
        k_LHD = k_LKD.repeat_interleave(group, 1)
        v_LHD = v_LKD.repeat_interleave(group, 1)
        scores_HTL = torch.einsum("thd,lhd->htl", q_THD, k_LHD) * spec.scale
        if spec.soft_cap is not None:
            scores_HTL = spec.soft_cap * torch.tanh(scores_HTL / spec.soft_cap)
        back = torch.arange(start, stop)[:, None] - torch.arange(stop)[None, :]
        seen = back >= 0
        if spec.window is not None:
            seen &= back < spec.window
        weights = scores_HTL.masked_fill(~seen, float("-inf")).softmax(-1)
        return torch.einsum("htl,lhd->thd", weights, v_LHD)


def filled(
    backend: AttentionBackend, cache: KVCache, blocks: Sequence[int], value: float
) -> KVCache:
    """The cache after `value` was written over whole blocks, each as a prompt of its own."""
    size, spec, device = backend.spec.block_size, backend.spec, backend.device
    rows = len(blocks) * size
    kv = torch.full((rows, spec.num_kv_heads, spec.head_dim), value).to(DTYPES[spec.dtype])
    q = torch.zeros(rows, spec.num_heads, spec.head_dim, dtype=DTYPES[spec.dtype])
    plan = backend.plan(_metadata([([block], 0, size) for block in blocks], size, device))
    here = kv.to(device)
    return backend.forward(q.to(device), here, here.clone(), cache, plan)[1]


def _metadata(spans: Sequence[tuple[list[int], int, int]], size: int, device: str) -> StepMetadata:
    """A step of requests that have these blocks of `size` tokens, and compute start:stop."""
    sizes = [stop - start for _, start, stop in spans]
    used = [-(-stop // size) for _, _, stop in spans]
    table = torch.zeros(len(spans), max(used), dtype=torch.int32)
    slots: list[int] = []
    for row, (blocks, start, stop) in enumerate(spans):
        table[row, : used[row]] = torch.tensor(blocks[: used[row]], dtype=torch.int32)
        slots += [blocks[i // size] * size + i % size for i in range(start, stop)]
    starts = torch.tensor([0, *sizes]).cumsum(0)
    lengths = torch.tensor([stop for _, _, stop in spans])
    return StepMetadata(
        query_start=starts.to(torch.int32).to(device),
        lengths=lengths.to(torch.int32).to(device),
        block_table=table.to(device),
        slots=torch.tensor(slots, dtype=torch.int64).to(device),
        max_query=max(sizes),
        max_length=int(lengths.max()),
        num_decodes=sizes.count(1),
    )
