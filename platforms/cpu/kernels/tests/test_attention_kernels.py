"""Paged attention against plain attention in float64.

The cache is full of NaN before anything is stored, q, k and v are slices of one wider matrix, and
the result lies between guard zones.

Shape legend: T tokens of a step, L tokens of a request, H query heads, K key/value heads, D head
dim.
"""

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

PAGE = 32
GUARD = 64  # elements
NUMBERS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.int8: 3}
#: Of the largest value of the right answer: a few roundings of the result.
TOLERANCES = {torch.float32: 3e-6, torch.bfloat16: 1.2e-2, torch.float16: 2e-3}


@pytest.fixture(autouse=True, params=[1, 2, 3], ids=lambda count: f"threads{count}")
def threads(request: pytest.FixtureRequest, lib: ctypes.CDLL) -> Iterator[int]:
    lib.ek_set_threads(request.param)
    yield request.param
    lib.ek_set_threads(0)


@dataclass(frozen=True)
class Shape:
    heads: int = 6
    kv_heads: int = 2
    head_dim: int = 64
    block_size: int = 32
    window: int = 0
    soft_cap: float = 0.0
    scale: float = 0.125
    dtype: torch.dtype = torch.float32
    kv_dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class Request:
    """Computes tokens start:stop; its first `shared` tokens are those of the first request."""

    start: int
    stop: int
    shared: int = 0


def kept(x: Tensor, kv_dtype: torch.dtype) -> Tensor:
    """What a cache makes of x [..., D], in float64."""
    if kv_dtype != torch.int8:
        return x.to(kv_dtype).double()
    scale = x.float().abs().amax(-1, keepdim=True) / 127
    factor = torch.where(scale > 0, 1 / scale, 0.0)
    return (x.float() * factor).round().double() * scale.double()


def exact(shape: Shape, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Rows of q are the last of the request; k and v are [L, K, D]. Result [R, H, D] float64."""
    group = shape.heads // shape.kv_heads
    k, v = (kept(x, shape.kv_dtype).repeat_interleave(group, 1) for x in (k, v))
    scores = torch.einsum("rhd,lhd->hrl", q.double(), k) * shape.scale
    if shape.soft_cap:
        scores = shape.soft_cap * torch.tanh(scores / shape.soft_cap)
    place = torch.arange(len(k) - len(q), len(k))[:, None] - torch.arange(len(k))
    hidden = place < 0
    if shape.window:
        hidden |= place >= shape.window
    return torch.einsum("hrl,lhd->rhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v)


class Cache:
    """One layer's cache and a plan, and requests with random numbers in it."""

    def __init__(self, lib: ctypes.CDLL, shape: Shape, requests: Sequence[Request]) -> None:
        self.lib, self.shape = lib, shape
        self.requests = sorted(requests, key=lambda one: one.stop - one.start > 1)
        self.random = torch.Generator().manual_seed(len(requests))
        size = shape.block_size
        counts = [-(-one.stop // size) for one in self.requests]
        unit = lib.ek_attention_unit_bytes(shape.head_dim, NUMBERS[shape.kv_dtype])
        block = unit * shape.kv_heads * (size // PAGE)
        # Every byte 255: NaN in all dtypes, and as a scale.
        self.cache = torch.full(((sum(counts) + 1) * block,), 255, dtype=torch.uint8)
        order = torch.randperm(sum(counts) + 1, generator=self.random).tolist()
        self.blocks = [[order.pop() for _ in range(count)] for count in counts]
        self.q, self.k, self.v = (
            [self._normal(one.stop, heads) for one in self.requests]
            for heads in (shape.heads, shape.kv_heads, shape.kv_heads)
        )
        for i, one in enumerate(self.requests):
            whole = one.shared // size
            self.blocks[i][:whole] = self.blocks[0][:whole]
            for x in (self.k, self.v):
                x[i][: whole * size] = x[0][: whole * size]
        self.plan = lib.ek_attention_plan_new(
            shape.heads,
            shape.kv_heads,
            shape.head_dim,
            size // PAGE,
            shape.window,
            shape.scale,
            shape.soft_cap,
            NUMBERS[shape.dtype],
            NUMBERS[shape.kv_dtype],
        )

    def __del__(self) -> None:
        self.lib.ek_attention_plan_free(self.plan)

    def _normal(self, tokens: int, heads: int) -> Tensor:
        x = torch.randn(tokens, heads, self.shape.head_dim, generator=self.random)
        return x.to(self.shape.dtype)

    def fill_plan(self, spans: Sequence[tuple[int, int, int]], share: bool) -> int:
        """`spans`: request, start, stop. Returns T."""
        size = self.shape.block_size
        width = max(-(-stop // size) for _, _, stop in spans) + 1
        table = torch.full((len(spans), width), 2**30, dtype=torch.int32)  # never to be looked at
        slots: list[int] = []
        for row, (i, start, stop) in enumerate(spans):
            used = -(-stop // size)
            table[row, :used] = torch.tensor(self.blocks[i][:used])
            slots += [self.blocks[i][t // size] * size + t % size for t in range(start, stop)]
        starts = torch.tensor([0, *(stop - start for _, start, stop in spans)]).cumsum(0).int()
        lengths = torch.tensor([stop for *_, stop in spans]).int()
        where = torch.tensor(slots)
        self.lib.ek_attention_plan(
            self.plan,
            starts.data_ptr(),
            lengths.data_ptr(),
            table.data_ptr(),
            table.stride(0),
            where.data_ptr(),
            len(spans),
            len(slots),
            int(share),
        )
        return len(slots)

    def step(self, spans: Sequence[tuple[int, int, int]], share: bool = True) -> Tensor:
        """[T, H, D]"""
        shape = self.shape
        tokens = self.fill_plan(spans, share)
        joined = torch.cat(
            [
                torch.cat([x[i][start:stop] for x in (self.q, self.k, self.v)], dim=1)
                for i, start, stop in spans
            ]
        )
        wide = torch.full((tokens, joined.shape[1] + 1, shape.head_dim), torch.nan).to(shape.dtype)
        wide[:, :-1] = joined
        q, k, v = wide[:, :-1].split((shape.heads, shape.kv_heads, shape.kv_heads), dim=1)
        size = tokens * shape.heads * shape.head_dim
        out = torch.full((size + 2 * GUARD,), torch.nan).to(shape.dtype)
        arguments = [n for x in (q, k, v) for n in (x.data_ptr(), x.stride(0), x.stride(1))]
        address = out.data_ptr() + GUARD * out.element_size()
        assert not self.lib.ek_attention(
            self.plan, *arguments, self.cache.data_ptr(), address, tokens
        )
        assert out[:GUARD].isnan().all(), "written before the result"
        assert out[-GUARD:].isnan().all(), "written behind the result"
        return out[GUARD:-GUARD].view(tokens, shape.heads, shape.head_dim)

    def fill(self) -> None:
        """Store what is in the cache before the step."""
        for i, one in enumerate(self.requests):
            if one.start:
                self.step([(i, 0, one.start)])

    def spans(self) -> list[tuple[int, int, int]]:
        return [(i, one.start, one.stop) for i, one in enumerate(self.requests)]

    def error(self, share: bool = True) -> float:
        self.fill()
        out = self.step(self.spans(), share)
        right = torch.cat(
            [
                exact(self.shape, q[one.start :], k, v)
                for one, q, k, v in zip(self.requests, self.q, self.k, self.v, strict=True)
            ]
        )
        # Not a number is no smaller than anything, and so fails too.
        return float((out.double() - right).abs().max() / right.abs().max())


def check(lib: ctypes.CDLL, shape: Shape, *requests: Request, share: bool = True) -> Cache:
    cache = Cache(lib, shape, requests)
    assert cache.error(share) < TOLERANCES[shape.dtype]
    return cache


LENGTHS = (1, 2, 12, 13, 31, 32, 33, 100, 257)
DECODES = tuple(Request(length - 1, length) for length in LENGTHS)
MIXED = (
    *DECODES,
    *(Request(0, length) for length in LENGTHS),
    *(Request(start, stop) for start, stop in ((16, 33), (5, 257), (200, 202), (255, 420))),
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("kv_dtype", list(NUMBERS), ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_pair_of_dtypes(lib: ctypes.CDLL, dtype: torch.dtype, kv_dtype: torch.dtype) -> None:
    check(lib, Shape(dtype=dtype, kv_dtype=kv_dtype), *MIXED)


@pytest.mark.parametrize("head_dim", [1, 15, 16, 17, 31, 33, 80, 96, 255, 257])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("byte", [False, True])
def test_any_size_of_head(lib: ctypes.CDLL, head_dim: int, dtype: torch.dtype, byte: bool) -> None:
    kv_dtype = torch.int8 if byte else dtype
    shape = Shape(head_dim=head_dim, scale=head_dim**-0.5, dtype=dtype, kv_dtype=kv_dtype)
    check(lib, shape, *DECODES, Request(5, 40), Request(0, 33))


@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (3, 3), (7, 1), (64, 1), (10, 5), (36, 4)])
def test_any_number_of_heads_may_share_keys(lib: ctypes.CDLL, heads: int, kv_heads: int) -> None:
    check(lib, Shape(heads=heads, kv_heads=kv_heads, head_dim=24), *MIXED)


@pytest.mark.parametrize("block_size", [64, 96, 256])
def test_any_number_of_pages_in_a_block(lib: ctypes.CDLL, block_size: int) -> None:
    check(lib, Shape(block_size=block_size), *MIXED)


@pytest.mark.parametrize("window", [1, 5, 31, 32, 33, 100, 4096])
@pytest.mark.parametrize("soft_cap", [0.0, 2.0])
def test_a_window_hides_what_is_older(lib: ctypes.CDLL, window: int, soft_cap: float) -> None:
    check(lib, Shape(window=window, soft_cap=soft_cap), *MIXED)


def test_scores_are_capped(lib: ctypes.CDLL) -> None:
    check(lib, Shape(soft_cap=1.5, scale=0.5), *MIXED)


def test_a_long_request_is_cut_among_threads(lib: ctypes.CDLL, threads: int) -> None:
    cache = check(lib, Shape(head_dim=16), Request(2999, 3000))
    cut = lib.ek_attention_plan_merges(cache.plan)
    assert cut == (1 if threads > 1 else 0)


SHARING = (
    *(Request(300 + 7 * i, 301 + 7 * i, shared=256) for i in range(5)),
    *(Request(400 + i, 401 + i, shared=96) for i in range(3)),
    Request(260, 264, shared=256),
    Request(0, 100),
    Request(40, 41),
)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("block_size", [32, 64])
def test_a_common_beginning_is_read_once(
    lib: ctypes.CDLL, dtype: torch.dtype, block_size: int
) -> None:
    shape = Shape(dtype=dtype, kv_dtype=dtype, block_size=block_size)
    cache = check(lib, shape, *SHARING)
    cache.fill_plan(cache.spans(), share=True)
    assert lib.ek_attention_plan_merges(cache.plan) >= 9
    apart, together = (cache.step(cache.spans(), share) for share in (False, True))
    error = (apart.double() - together.double()).abs().max() / apart.abs().max()
    assert error < TOLERANCES[dtype]


def test_requests_that_share_every_block(lib: ctypes.CDLL) -> None:
    """The last of them sees only keys that others see too, to the last page."""
    cache = Cache(lib, Shape(), [Request(255, 256), *[Request(255, 256, shared=256)] * 3])
    for x in (cache.q, cache.k, cache.v):
        x[1:] = [x[0]] * 3
    assert cache.error() < TOLERANCES[torch.float32]


def test_a_request_reads_what_another_one_stores_in_the_same_step(lib: ctypes.CDLL) -> None:
    cache = Cache(lib, Shape(), [Request(0, 70), Request(64, 90, shared=64)])
    out = cache.step(cache.spans())
    right = torch.cat(
        [
            exact(cache.shape, q[one.start :], k, v)
            for one, q, k, v in zip(cache.requests, cache.q, cache.k, cache.v, strict=True)
        ]
    )
    assert (out.double() - right).abs().max() < 1e-5


def test_large_scores_stay_numbers(lib: ctypes.CDLL) -> None:
    check(lib, Shape(scale=40.0), *(Request(n - 1, n) for n in (1, 33, 300)), share=True)


def test_a_recorded_step_runs_with_what_the_plan_says_then(lib: ctypes.CDLL) -> None:
    shape = Shape()
    cache = Cache(lib, shape, [Request(0, 40), Request(40, 70)])
    tokens = 40
    q, k, v, out = (
        torch.zeros(tokens, heads, shape.head_dim)
        for heads in (shape.heads, shape.kv_heads, shape.kv_heads, shape.heads)
    )
    cache.fill_plan([(0, 0, tokens)], share=True)
    tape = lib.ek_tape_new(tokens)
    lib.ek_tape_begin(tape)
    arguments = [n for x in (q, k, v) for n in (x.data_ptr(), x.stride(0), x.stride(1))]
    result = lib.ek_attention(
        cache.plan, *arguments, cache.cache.data_ptr(), out.data_ptr(), tokens
    )
    other = lib.ek_attention(cache.plan, *arguments, cache.cache.data_ptr(), out.data_ptr(), 3)
    lib.ek_tape_end()
    assert (result, other) == (0, -1)
    for start, stop in ((0, 40), (40, 41), (41, 70)):
        count = cache.fill_plan([(1, start, stop)], share=True)
        for x, every in ((q, cache.q), (k, cache.k), (v, cache.v)):
            x[:count] = every[1][start:stop]
        lib.ek_tape_run(tape, count)
        right = exact(shape, cache.q[1][start:stop], cache.k[1][:stop], cache.v[1][:stop])
        assert (out[:count].double() - right).abs().max() < 1e-5
    lib.ek_tape_free(tape)
