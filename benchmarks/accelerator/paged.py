"""Requests of random numbers in a paged cache on the device, and the right answer in float64.

T tokens of a step, N requests, H query heads, K key/value heads, D head dim, L tokens of a request.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from accelerator.models import ModelShape
from engine.platform import AttentionBackend, AttentionSpec, KVCache, Platform, StepMetadata

#: Rows of one step while the cache is filled.
FILLED_AT_ONCE = 1 << 15


def spec_of(shape: ModelShape, platform: Platform, **changes: Any) -> AttentionSpec:
    """Of one layer, in bfloat16 if the platform has it."""
    dtypes = platform.capabilities.dtypes
    dtype = "bfloat16" if "bfloat16" in dtypes else dtypes[0]
    fields = {
        "num_heads": shape.num_attention_heads,
        "num_kv_heads": shape.num_key_value_heads,
        "head_dim": shape.head_dim,
        "block_size": platform.capabilities.block_sizes[0],
        "dtype": dtype,
        "kv_dtype": dtype,
        "scale": shape.head_dim**-0.5,
    }
    return AttentionSpec(**{**fields, **changes})


@dataclass(frozen=True)
class Span:
    """The tokens start:stop of one request, which a step computes."""

    request: int
    start: int
    stop: int


class Requests:
    """`lengths` are of all tokens that each will ever have; its blocks lie in random order."""

    def __init__(
        self, platform: Platform, spec: AttentionSpec, lengths: Sequence[int], caches: int = 1
    ) -> None:
        self.spec, self.lengths, self.device = spec, list(lengths), platform.device
        self.backend: AttentionBackend = platform.attention(spec)
        sizes = [-(-length // spec.block_size) for length in lengths]
        self.num_blocks = sum(sizes)
        order = torch.randperm(self.num_blocks, generator=torch.Generator().manual_seed(0))
        self.table = torch.zeros(len(sizes), max(sizes), dtype=torch.int32)
        for row, (size, stop) in enumerate(zip(sizes, accumulate(sizes), strict=True)):
            self.table[row, :size] = order[stop - size : stop]
        self._offsets = [0, *accumulate(lengths)]
        self.q = self._normal(spec.num_heads)
        self.k = self._normal(spec.num_kv_heads)
        self.v = self._normal(spec.num_kv_heads)
        self.caches: list[KVCache] = [self.backend.allocate(self.num_blocks) for _ in range(caches)]

    def plan(self, spans: Sequence[Span]) -> Any:
        """Of a step; those that compute one token come first."""
        size, sizes = self.spec.block_size, [span.stop - span.start for span in spans]
        assert sizes == sorted(sizes, key=lambda count: count > 1)
        slots = []
        for span in spans:
            positions = torch.arange(span.start, span.stop)
            slots.append(self.table[span.request][positions // size] * size + positions % size)
        longest = max(span.stop for span in spans)
        rows = torch.tensor([span.request for span in spans])
        return self.backend.plan(
            StepMetadata(
                query_start=self._to(torch.tensor([0, *accumulate(sizes)]), torch.int32),
                lengths=self._to(torch.tensor([span.stop for span in spans]), torch.int32),
                block_table=self._to(self.table[rows, : -(-longest // size)], torch.int32),
                slots=self._to(torch.cat(slots), torch.int64),
                max_query=max(sizes),
                max_length=longest,
                num_decodes=sizes.count(1),
            )
        )

    def rows(self, spans: Sequence[Span]) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v of a step."""
        places = torch.cat(
            [torch.arange(one.start, one.stop) + self._offsets[one.request] for one in spans]
        ).to(self.device)
        return self.q[places], self.k[places], self.v[places]

    def forward(self, spans: Sequence[Span], cache: int = 0) -> Tensor:
        """One step; what it computes."""
        out, self.caches[cache] = self.backend.forward(
            *self.rows(spans), self.caches[cache], self.plan(spans)
        )
        return out

    def fill(self, stops: Sequence[int]) -> None:
        """Compute the first tokens of every request, into every cache."""
        for cache in range(len(self.caches)):
            batch: list[Span] = []
            for request, stop in sorted(enumerate(stops), key=lambda one: one[1] > 1):
                if batch and sum(one.stop for one in batch) + stop > FILLED_AT_ONCE:
                    self.forward(batch, cache)
                    batch = []
                batch += [Span(request, 0, stop)] if stop else []
            if batch:
                self.forward(batch, cache)

    def exact(self, spans: Sequence[Span]) -> Tensor:
        """[T, H, D] float64: causal attention over each request's own tokens, head by head."""
        return torch.cat([self._exact(span) for span in spans])

    def _exact(self, span: Span) -> Tensor:
        spec, first = self.spec, self._offsets[span.request]
        q = self.q[first + span.start : first + span.stop].double()
        k, v = (x[first : first + span.stop].double() for x in (self.k, self.v))
        group = spec.num_heads // spec.num_kv_heads
        back = torch.arange(span.start, span.stop, device=self.device)[:, None]
        back = back - torch.arange(span.stop, device=self.device)
        seen = back >= 0
        if spec.window is not None:
            seen &= back < spec.window
        heads = []
        for head in range(spec.num_heads):
            scores = q[:, head] @ k[:, head // group].T * spec.scale
            if spec.soft_cap is not None:
                scores = spec.soft_cap * torch.tanh(scores / spec.soft_cap)
            weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
            heads.append(weights @ v[:, head // group])
        return torch.stack(heads, 1)

    def _normal(self, heads: int) -> Tensor:
        shape = (sum(self.lengths), heads, self.spec.head_dim)
        return torch.randn(shape, device=self.device).to(getattr(torch, self.spec.dtype))

    def _to(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return x.to(dtype).to(self.device)
