"""Paged attention against plain attention in float64."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.platform import AttentionSpec, StepMetadata
from engine_cpu import plan
from engine_cpu.attention import DTYPES, PagedAttention

#: Of the largest value: a few roundings of the result's and the cache's dtype.
TOLERANCES = {"float32": 2e-6, "bfloat16": 1.2e-2, "float16": 2e-3}

SPEC = AttentionSpec(
    num_heads=8,
    num_kv_heads=2,
    head_dim=64,
    block_size=16,
    dtype="float32",
    kv_dtype="float32",
    scale=0.125,
)


@dataclass(frozen=True)
class Request:
    """Computes tokens start:stop of a sequence of which the cache has those before `start`."""

    start: int
    stop: int


def exact(spec: AttentionSpec, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Rows of q are the last of the sequence; k and v are [L, K, D]. Result [R, H, D] float64."""
    group = spec.num_heads // spec.num_kv_heads
    q, k, v = q.double(), k.double(), v.double()
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = torch.einsum("rhd,lhd->hrl", q, k) * spec.scale
    if spec.soft_cap is not None:
        scores = spec.soft_cap * torch.tanh(scores / spec.soft_cap)
    place = torch.arange(len(k) - len(q), len(k))[:, None] - torch.arange(len(k))
    hidden = place < 0
    if spec.window is not None:
        hidden |= place >= spec.window
    return torch.einsum("hrl,lhd->rhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v)


class Step:
    """Fills a cache of NaN with what came before, computes one step and remembers the answer."""

    def __init__(self, spec: AttentionSpec, requests: Sequence[Request], seed: int = 0) -> None:
        self.spec = spec
        self.requests = sorted(requests, key=lambda one: one.stop - one.start > 1)
        self.random = torch.Generator().manual_seed(seed)
        size = spec.block_size
        counts = [-(-one.stop // size) for one in self.requests]
        self.backend = PagedAttention(spec, "cpu:0")
        self.cache = self.backend.allocate(sum(counts) + 2).fill_(torch.nan)
        order = torch.randperm(len(self.cache), generator=self.random).tolist()
        self.blocks = [[order.pop() for _ in range(count)] for count in counts]
        self.k, self.v = (
            [self.normal(one.stop, spec.num_kv_heads) for one in self.requests] for _ in range(2)
        )
        self.q = [self.normal(one.stop - one.start, spec.num_heads) for one in self.requests]

    def normal(self, tokens: int, heads: int) -> Tensor:
        x = torch.randn(tokens, heads, self.spec.head_dim, generator=self.random)
        return x.to(DTYPES[self.spec.dtype])

    def metadata(self, starts: Sequence[int], stops: Sequence[int]) -> StepMetadata:
        size = self.spec.block_size
        counts = [-(-stop // size) for stop in stops]
        table = torch.zeros(len(stops), max(counts), dtype=torch.int32)
        slots = []
        for row, (start, stop) in enumerate(zip(starts, stops, strict=True)):
            table[row, : counts[row]] = torch.tensor(self.blocks[row][: counts[row]])
            slots += [self.blocks[row][i // size] * size + i % size for i in range(start, stop)]
        sizes = [stop - start for start, stop in zip(starts, stops, strict=True)]
        return StepMetadata(
            query_start=torch.tensor([0, *sizes]).cumsum(0).int(),
            lengths=torch.tensor(stops).int(),
            block_table=table,
            slots=torch.tensor(slots),
            max_query=max(sizes),
            max_length=max(stops),
            num_decodes=sum(size == 1 for size in sizes),
        )

    def run(self) -> Tensor:
        """[T, H, D]"""
        for row, one in enumerate(self.requests):
            self._fill(row, one.start)
        metadata = self.metadata(
            [one.start for one in self.requests], [one.stop for one in self.requests]
        )
        new = (
            torch.cat([x[one.start :] for one, x in zip(self.requests, every, strict=True)])
            for every in (self.k, self.v)
        )
        made = self.backend.plan(metadata)
        out, self.cache = self.backend.forward(torch.cat(self.q), *new, self.cache, made)
        return out

    def expected(self) -> Tensor:
        kv_dtype = DTYPES[self.spec.kv_dtype]
        return torch.cat(
            [
                exact(self.spec, q, k.to(kv_dtype), v.to(kv_dtype))
                for q, k, v in zip(self.q, self.k, self.v, strict=True)
            ]
        )

    def error(self) -> float:
        out, right = self.run(), self.expected()
        assert out.dtype == DTYPES[self.spec.dtype]
        return float((out.double() - right).abs().max() / right.abs().max())

    def _fill(self, row: int, stop: int) -> None:
        """Write the first tokens where the layout's legend says, without the backend's help."""
        size = self.spec.block_size
        for i in range(stop):
            block = self.cache[self.blocks[row][i // size]]
            block[0, :, i % size], block[1, :, i % size] = self.k[row][i], self.v[row][i]


def check(spec: AttentionSpec, *requests: Request) -> None:
    error = Step(spec, requests).error()
    # Not a number is no smaller than anything, and so fails too.
    assert error < max(TOLERANCES[spec.dtype], TOLERANCES[spec.kv_dtype])


LENGTHS = (1, 15, 16, 17, 255, 257)
DECODES = tuple(Request(length - 1, length) for length in LENGTHS)
PROMPTS = tuple(Request(0, length) for length in LENGTHS)
CHUNKS = (Request(16, 33), Request(5, 257), Request(200, 202), Request(255, 600))
MIXED = (*DECODES, *PROMPTS, *CHUNKS)


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("requests", [DECODES, PROMPTS, CHUNKS, MIXED])
def test_every_kind_of_step_is_right(dtype: str, requests: tuple[Request, ...]) -> None:
    check(replace(SPEC, dtype=dtype, kv_dtype=dtype), *requests)


@pytest.mark.parametrize("kv_heads", [1, 2, 3])
@pytest.mark.parametrize("group", [1, 4, 7, 8])
def test_any_number_of_heads_may_share_keys(kv_heads: int, group: int) -> None:
    check(replace(SPEC, num_kv_heads=kv_heads, num_heads=kv_heads * group), *MIXED)


@pytest.mark.parametrize("head_dim", [8, 64, 80, 96, 128, 256])
def test_any_size_of_head(head_dim: int) -> None:
    check(replace(SPEC, head_dim=head_dim, scale=head_dim**-0.5), *MIXED)


@pytest.mark.parametrize("block_size", [1, 7, 16, 64, 256])
def test_any_size_of_block(block_size: int) -> None:
    check(replace(SPEC, block_size=block_size), *MIXED)


@pytest.mark.parametrize("window", [1, 5, 16, 17, 100, 256, 4096])
@pytest.mark.parametrize("soft_cap", [None, 2.0])
def test_a_window_hides_what_is_older(window: int, soft_cap: float | None) -> None:
    check(replace(SPEC, window=window, soft_cap=soft_cap), *MIXED)


def test_scores_are_capped() -> None:
    check(replace(SPEC, soft_cap=1.5, scale=0.5), *MIXED)


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("kv_dtype", list(DTYPES))
def test_the_cache_may_have_another_dtype(dtype: str, kv_dtype: str) -> None:
    check(replace(SPEC, dtype=dtype, kv_dtype=kv_dtype), *MIXED)


def test_long_requests_are_gathered_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the processor's cache were tiny: every part is then made of several."""
    monkeypatch.setattr("engine_cpu.attention.WORKSPACE", 2**13)
    monkeypatch.setattr("engine_cpu.attention.PROMPT_WORKSPACE", 2**13)
    monkeypatch.setattr("engine_cpu.plan.PIECE_SCORES", 2**13)
    step = Step(SPEC, DECODES)
    made = step.backend.plan(step.metadata([n - 1 for n in LENGTHS], LENGTHS))
    assert max(len(group.k_strips) for group in made.decodes) > 1
    for spec in (SPEC, replace(SPEC, window=40), replace(SPEC, soft_cap=2.0)):
        check(spec, *MIXED)


def test_requests_of_very_different_length_are_not_padded_to_the_longest() -> None:
    lengths = [8000, 16, 16, 7900, 20, 16] + [2000] * 3
    groups = list(plan._groups(replace(SPEC, num_kv_heads=8, head_dim=128), lengths, 2**20))
    assert sorted(request for group in groups for request in group) == list(range(len(lengths)))
    padded = sum(max(lengths[i] for i in group) * len(group) for group in groups)
    assert padded < 1.3 * sum(lengths)


@settings(max_examples=60, deadline=None)
@given(
    heads=st.sampled_from([(1, 1), (2, 6), (3, 3), (4, 16)]),
    head_dim=st.sampled_from([8, 24, 64]),
    block_size=st.sampled_from([1, 3, 8, 16, 64]),
    window=st.none() | st.integers(1, 80),
    soft_cap=st.none() | st.just(2.0),
    requests=st.lists(
        st.tuples(st.integers(0, 90), st.just(1) | st.integers(1, 300)), min_size=1, max_size=6
    ),
)
def test_any_mixture_is_right(
    heads: tuple[int, int],
    head_dim: int,
    block_size: int,
    window: int | None,
    soft_cap: float | None,
    requests: list[tuple[int, int]],
) -> None:
    spec = replace(
        SPEC,
        num_kv_heads=heads[0],
        num_heads=heads[1],
        head_dim=head_dim,
        block_size=block_size,
        window=window,
        soft_cap=soft_cap,
    )
    check(spec, *(Request(start, start + count) for start, count in requests))


def test_padding_is_not_stored() -> None:
    step = Step(SPEC, [Request(4, 5), Request(0, 1)])
    metadata = step.metadata([4, 0], [5, 1])
    metadata.slots[1] = -1
    k, v = (torch.ones(2, SPEC.num_kv_heads, SPEC.head_dim) for _ in range(2))
    _, cache = step.backend.forward(
        torch.cat(step.q), k, v, step.cache, step.backend.plan(metadata)
    )
    written = ~cache.isnan()
    assert int(written.sum()) == 2 * SPEC.num_kv_heads * SPEC.head_dim
    assert written[step.blocks[0][0], :, :, 4].all()


def test_keys_and_values_need_not_be_contiguous() -> None:
    """They are often views of what one matrix product made."""
    step = Step(SPEC, [Request(0, 40)])
    heads = (SPEC.num_heads, SPEC.num_kv_heads, SPEC.num_kv_heads)
    joined = torch.cat([step.q[0], step.k[0], step.v[0]], dim=1)
    made = step.backend.plan(step.metadata([0], [40]))
    out, _ = step.backend.forward(*joined.split(heads, dim=1), step.cache, made)
    assert (out.double() - step.expected()).abs().max() < 1e-5


def test_a_request_reads_what_another_one_writes_in_the_same_step() -> None:
    step = Step(SPEC, [Request(0, 36), Request(32, 48)])
    step.blocks[1][:2] = step.blocks[0][:2]
    for every in (step.k, step.v):
        every[1][:32] = every[0][:32]
    step.requests[1] = Request(32, 48)
    before = step.metadata([0, 32], [36, 48])
    new = (torch.cat([every[0], every[1][32:]]) for every in (step.k, step.v))
    out, _ = step.backend.forward(torch.cat(step.q), *new, step.cache, step.backend.plan(before))
    assert (out.double() - step.expected()).abs().max() < 1e-5


def test_copied_blocks_are_equal_and_the_others_untouched() -> None:
    backend = PagedAttention(SPEC, "cpu:0")
    cache = torch.randn(8, *backend.kv_layout().shape)
    before = cache.clone()
    after = backend.copy_blocks(cache, [(1, 5), (1, 6), (3, 0)])
    assert torch.equal(after[[5, 6, 0]], before[[1, 1, 3]])
    assert torch.equal(after[[1, 2, 3, 4, 7]], before[[1, 2, 3, 4, 7]])
    assert torch.equal(backend.copy_blocks(after.clone(), []), after)


@pytest.mark.parametrize("kv_dtype", list(DTYPES))
def test_the_layout_tells_the_size_of_a_block(kv_dtype: str) -> None:
    backend = PagedAttention(replace(SPEC, kv_dtype=kv_dtype), "cpu:0")
    layout, cache = backend.kv_layout(), backend.allocate(5)
    assert layout.bytes_per_block * 5 == cache.nbytes
    assert cache.shape == (5, *layout.shape)
    assert layout.dtype == kv_dtype


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dtype": "int8"}, "dtype 'int8'"),
        ({"kv_dtype": "fp8_e4m3"}, "kv_dtype 'fp8_e4m3'"),
        ({"num_heads": 7}, "7 heads cannot share 2"),
        ({"head_dim": 0}, "at least 1"),
        ({"window": 0}, "window must be at least 1"),
    ],
)
def test_what_it_cannot_do_it_says(change: dict[str, object], words: str) -> None:
    assert PagedAttention.unsupported(SPEC) is None
    assert words in str(PagedAttention.unsupported(replace(SPEC, **change)))  # type: ignore[arg-type]
