"""Steps over a paged cache that a test lays out itself, and the right answers in float64.

The cache is filled by torch alone, in the layout [P, 2, K, S, D]; what nobody wrote is NaN, and so
are outputs before a kernel runs. N requests, H query heads, K key/value heads, D head dim,
S tokens a block, L tokens of one request.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.platform import AttentionSpec, StepMetadata
from engine_triton.architecture import Architecture
from engine_triton.attention.layout import DTYPES, KVFormat

FP8 = {
    "e4m3": torch.float8_e4m3fn,
    "e4m3fnuz": torch.float8_e4m3fnuz,
    "e5m2": torch.float8_e5m2,
}
#: Largest difference over the largest value; weights are rounded to the dtype before they multiply.
TOLERANCES = {"float32": 1e-5, "bfloat16": 1.5e-2, "float16": 2e-3}


def spec_of(**changes: Any) -> AttentionSpec:
    usual: dict[str, Any] = {
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 32,
        "block_size": 16,
        "dtype": "float32",
        "scale": 0.2,
        **changes,
    }
    return AttentionSpec(**{"kv_dtype": usual["dtype"], **usual})


@dataclass(frozen=True, slots=True)
class Request:
    """Its last `rows` of `length` tokens are computed. k and v: float64, as a cache holds them."""

    length: int
    rows: int
    k_LKD: Tensor
    v_LKD: Tensor
    blocks: list[int]


class PagedStep:
    """Requests of (length, rows) with their whole keys and values in a cache."""

    def __init__(
        self,
        spec: AttentionSpec,
        architecture: Architecture,
        sizes: Sequence[tuple[int, int]],
        seed: int = 0,
    ) -> None:
        self.spec = spec
        self.form = KVFormat.of(spec, architecture)
        self._random = torch.Generator().manual_seed(seed)
        counts = [-(-length // spec.block_size) for length, _ in sizes]
        self._free = torch.randperm(sum(counts) + 2, generator=self._random).tolist()
        shape = (len(self._free), 2, spec.num_kv_heads, spec.block_size, spec.head_dim)
        empty = torch.full(shape, float("nan")).to(self._kept)
        self.cache = empty.view(self.form.memory)
        self.requests = [self._request(*size) for size in sizes]
        rows = sum(rows for _, rows in sizes)
        self.q_THD = self.normal(rows, spec.num_heads)
        self.out_THD = torch.full_like(self.q_THD, float("nan"))

    @property
    def seen(self) -> Tensor:
        """The cache as kernels of attention read it."""
        return self.cache.view(self.form.reading)

    @property
    def metadata(self) -> StepMetadata:
        rows = [one.rows for one in self.requests]
        lengths = [one.length for one in self.requests]
        table = torch.zeros(len(rows), max(len(one.blocks) for one in self.requests) + 1)
        for row, one in enumerate(self.requests):
            table[row, : len(one.blocks)] = torch.tensor(one.blocks)
        return StepMetadata(
            query_start=torch.tensor([0, *rows]).cumsum(0).int(),
            lengths=torch.tensor(lengths).int(),
            block_table=table.int(),
            slots=torch.full((sum(rows),), -1),
            max_query=max(rows),
            max_length=max(lengths),
            num_decodes=next((i for i, count in enumerate(rows) if count != 1), len(rows)),
        )

    def error(self, found_THD: Tensor) -> float:
        """Of what a kernel made of the step. NaN counts as infinite."""
        right = self.exact()
        if not bool(found_THD.isfinite().all()):
            return float("inf")
        return float((found_THD.double() - right).abs().max() / right.abs().max())

    def exact(self) -> Tensor:
        """The right answer [T, H, D], float64."""
        starts = self.metadata.query_start.tolist()
        return torch.cat([self._exact(i, starts[i]) for i in range(len(self.requests))])

    def normal(self, tokens: int, heads: int) -> Tensor:
        made = torch.randn(tokens, heads, self.spec.head_dim, generator=self._random)
        return made.to(DTYPES[self.spec.dtype])

    @property
    def _kept(self) -> torch.dtype:
        """The cache's number format, as torch knows it."""
        return FP8.get(self.form.write, self.form.memory)

    def _request(self, length: int, rows: int) -> Request:
        spec, size = self.spec, self.spec.block_size
        k_LKD, v_LKD = (self.normal(length, spec.num_kv_heads).to(self._kept) for _ in range(2))
        blocks = [self._free.pop() for _ in range(-(-length // size))]
        bits = self.cache.view(torch.uint8)
        for token in range(length):
            block, offset = blocks[token // size], token % size
            bits[block, 0, :, offset] = k_LKD[token].view(torch.uint8)
            bits[block, 1, :, offset] = v_LKD[token].view(torch.uint8)
        return Request(length, rows, k_LKD.double(), v_LKD.double(), blocks)

    def _exact(self, number: int, first_row: int) -> Tensor:
        one, spec = self.requests[number], self.spec
        start = one.length - one.rows
        q_THD = self.q_THD[first_row : first_row + one.rows].double()
        group = spec.num_heads // spec.num_kv_heads
        k_LHD, v_LHD = (x.repeat_interleave(group, 1) for x in (one.k_LKD, one.v_LKD))
        scores = torch.einsum("thd,lhd->htl", q_THD, k_LHD) * spec.scale
        if spec.soft_cap is not None:
            scores = spec.soft_cap * torch.tanh(scores / spec.soft_cap)
        back = torch.arange(start, one.length)[:, None] - torch.arange(one.length)[None, :]
        hidden = back < 0
        if spec.window is not None:
            hidden |= back >= spec.window
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        return torch.einsum("htl,lhd->thd", weights, v_LHD)
