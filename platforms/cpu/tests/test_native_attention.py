"""The native attention backend: what it adds to the kernels, which have tests of their own."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.platform import AttentionSpec, StepMetadata
from engine_cpu import native

if reason := native.available():
    pytest.skip(reason, allow_module_level=True)

from engine_cpu.attention import PagedAttention
from engine_cpu.native.attention import NativeAttention
from engine_cpu.native.memory import Arena, NotRecordable, record

SPEC = AttentionSpec(
    num_heads=6,
    num_kv_heads=2,
    head_dim=64,
    block_size=32,
    dtype="float32",
    kv_dtype="float32",
    scale=0.125,
)


def step_of(block_size: int, spans: Sequence[tuple[Sequence[int], int, int]]) -> StepMetadata:
    """`spans`: a request's blocks, and which of its tokens are computed."""
    used = [-(-stop // block_size) for _, _, stop in spans]
    table = torch.zeros(len(spans), max(used), dtype=torch.int32)
    slots: list[int] = []
    for row, (blocks, start, stop) in enumerate(spans):
        table[row, : used[row]] = torch.tensor(blocks[: used[row]])
        slots += [blocks[i // block_size] * block_size + i % block_size for i in range(start, stop)]
    sizes = [stop - start for _, start, stop in spans]
    return StepMetadata(
        query_start=torch.tensor([0, *sizes]).cumsum(0).int(),
        lengths=torch.tensor([stop for *_, stop in spans]).int(),
        block_table=table,
        slots=torch.tensor(slots),
        max_query=max(sizes),
        max_length=max(stop for *_, stop in spans),
        num_decodes=sizes.count(1),
    )


def numbers(spec: AttentionSpec, tokens: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v: slices of one matrix."""
    random = torch.Generator().manual_seed(seed)
    heads = (spec.num_heads, spec.num_kv_heads, spec.num_kv_heads)
    joined = torch.randn(tokens, sum(heads), spec.head_dim, generator=random)
    q, k, v = joined.to(getattr(torch, spec.dtype)).split(heads, dim=1)
    return q, k, v


def exact(spec: AttentionSpec, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """[R, H, D] float64: rows of q are the last of a request; k and v are [L, K, D]."""
    group = spec.num_heads // spec.num_kv_heads
    k, v = (x.double().repeat_interleave(group, 1) for x in (k, v))
    scores = torch.einsum("rhd,lhd->hrl", q.double(), k) * spec.scale
    if spec.soft_cap is not None:
        scores = spec.soft_cap * torch.tanh(scores / spec.soft_cap)
    place = torch.arange(len(k) - len(q), len(k))[:, None] - torch.arange(len(k))
    hidden = place < 0
    if spec.window is not None:
        hidden |= place >= spec.window
    return torch.einsum("hrl,lhd->rhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v)


@settings(max_examples=60, deadline=None)
@given(
    heads=st.sampled_from([(1, 1), (2, 6), (3, 3), (4, 16)]),
    head_dim=st.sampled_from([8, 24, 64]),
    block_size=st.sampled_from([32, 64]),
    window=st.none() | st.integers(1, 80),
    soft_cap=st.none() | st.just(2.0),
    share=st.booleans(),
    prefix=st.integers(0, 4),
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
    share: bool,
    prefix: int,
    requests: list[tuple[int, int]],
) -> None:
    """Every request begins with the same `prefix` blocks, which are in the cache."""
    spec = replace(
        SPEC,
        num_kv_heads=heads[0],
        num_heads=heads[1],
        head_dim=head_dim,
        block_size=block_size,
        window=window,
        soft_cap=soft_cap,
    )
    backend = NativeAttention(spec, "cpu:0", share_prefixes=share)
    common = prefix * block_size
    spans = sorted(
        ((common + start, common + start + count) for start, count in requests),
        key=lambda span: span[1] - span[0] > 1,
    )
    order = iter(torch.randperm(prefix + sum(-(-stop // block_size) for _, stop in spans)).tolist())
    shared = [next(order) for _ in range(prefix)]
    blocks = [
        shared + [next(order) for _ in range(-(-stop // block_size) - prefix)] for _, stop in spans
    ]
    cache = backend.allocate(prefix + sum(-(-stop // block_size) for _, stop in spans))
    cache.fill_(torch.nan)
    whole = [numbers(spec, stop, seed) for seed, (_, stop) in enumerate(spans)]
    for _, k, v in whole:
        k[:common], v[:common] = whole[0][1][:common], whole[0][2][:common]
    for where, (start, _), (q, k, v) in zip(blocks, spans, whole, strict=True):
        if start:
            before = backend.plan(step_of(block_size, [(where, 0, start)]))
            backend.forward(q[:start], k[:start], v[:start], cache, before)
    parts = list(zip(blocks, spans, whole, strict=True))
    made = backend.plan(step_of(block_size, [(where, *span) for where, span, _ in parts]))
    new = [torch.cat([x[i][start:stop] for _, (start, stop), x in parts]) for i in range(3)]
    out, _ = backend.forward(new[0], new[1], new[2], cache, made)
    right = torch.cat([exact(spec, q[start:], k, v) for _, (start, _), (q, k, v) in parts])
    assert (out.double() - right).abs().max() < 4e-6 * right.abs().max()


def test_it_gives_what_torch_gives() -> None:
    q, k, v = numbers(SPEC, 70)
    step = step_of(32, [([3, 0, 2], 0, 70)])
    results = []
    for backend in (NativeAttention(SPEC, "cpu:0"), PagedAttention(SPEC, "cpu:0")):
        out, _ = backend.forward(q, k, v, backend.allocate(4), backend.plan(step))
        results.append(out)
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)


def test_a_plan_stays_while_others_are_made() -> None:
    backend = NativeAttention(SPEC, "cpu:0")
    cache = backend.allocate(4)
    q, k, v = numbers(SPEC, 40)
    first = backend.plan(step_of(32, [([1, 2], 0, 40)]))
    second = backend.plan(step_of(32, [([0], 0, 1)]))
    assert first.address != second.address
    out, _ = backend.forward(q, k, v, cache, first)
    assert (out.double() - exact(SPEC, q, k, v)).abs().max() < 1e-5
    address = second.address
    del second
    assert backend.plan(step_of(32, [([0], 0, 1)])).address == address


def test_a_plan_keeps_its_address_when_it_is_filled_again() -> None:
    backend = NativeAttention(SPEC, "cpu:0")
    cache = backend.allocate(3)
    q, k, v = numbers(SPEC, 40)
    plan = backend.plan(step_of(32, [([1, 2], 0, 33)]))
    backend.forward(q[:33], k[:33], v[:33], cache, plan)
    address = plan.address
    backend.replan(plan, step_of(32, [([1, 2], 33, 40)]))
    out, _ = backend.forward(q[33:], k[33:], v[33:], cache, plan)
    assert plan.address == address
    assert (out.double() - exact(SPEC, q[33:], k, v)).abs().max() < 1e-5


def test_padding_is_not_stored() -> None:
    backend = NativeAttention(SPEC, "cpu:0")
    cache = backend.allocate(2).fill_(torch.nan)
    step = step_of(32, [([1], 4, 5), ([0], 0, 1)])
    step.slots[1] = -1
    backend.forward(*numbers(SPEC, 2), cache, backend.plan(step))
    assert int((~cache.isnan()).sum()) == 2 * SPEC.num_kv_heads * SPEC.head_dim
    assert cache[0].isnan().all()


def test_the_last_dimension_may_be_strided() -> None:
    backend = NativeAttention(SPEC, "cpu:0")
    step = step_of(32, [([0, 1], 0, 40)])
    q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in numbers(SPEC, 40))
    out, _ = backend.forward(q, k, v, backend.allocate(2), backend.plan(step))
    assert (out.double() - exact(SPEC, q, k, v)).abs().max() < 1e-5


def test_what_would_need_a_copy_cannot_be_recorded() -> None:
    backend = NativeAttention(SPEC, "cpu:0")
    plan = backend.plan(step_of(32, [([0], 0, 20)]))
    q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in numbers(SPEC, 20))
    with record(Arena()), pytest.raises(NotRecordable, match="strides"):
        backend.forward(q, k, v, backend.allocate(1), plan)


@pytest.mark.parametrize("kv_dtype", ["float32", "int8"])
def test_copied_blocks_are_equal_and_the_others_untouched(kv_dtype: str) -> None:
    backend = NativeAttention(replace(SPEC, kv_dtype=kv_dtype, block_size=64), "cpu:0")
    cache = backend.allocate(8)
    cache.copy_(torch.randint(-100, 100, cache.shape))
    before = cache.clone()
    after = backend.copy_blocks(cache, [(1, 5), (1, 6), (3, 0)])
    assert torch.equal(after[[5, 6, 0]], before[[1, 1, 3]])
    assert torch.equal(after[[1, 2, 3, 4, 7]], before[[1, 2, 3, 4, 7]])
    assert torch.equal(backend.copy_blocks(after.clone(), []), after)


@pytest.mark.parametrize("kv_dtype", ["float32", "bfloat16", "float16", "int8"])
@pytest.mark.parametrize("head_dim", [64, 33])
def test_the_layout_tells_the_size_of_a_block(kv_dtype: str, head_dim: int) -> None:
    spec = replace(SPEC, kv_dtype=kv_dtype, head_dim=head_dim, block_size=96)
    backend = NativeAttention(spec, "cpu:0")
    layout, cache = backend.kv_layout(), backend.allocate(5)
    assert layout.bytes_per_block * 5 == cache.nbytes
    assert cache.shape == (5, *layout.shape)
    assert layout.dtype == kv_dtype == str(cache.dtype).removeprefix("torch.")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dtype": "int8"}, "dtype 'int8'"),
        ({"kv_dtype": "fp8_e4m3"}, "kv_dtype 'fp8_e4m3'"),
        ({"num_heads": 7}, "7 heads cannot share 2"),
        ({"head_dim": 0}, "at least 1"),
        ({"block_size": 48}, "block_size must be a multiple of 32, got 48"),
        ({"window": 0}, "window must be at least 1"),
        ({"soft_cap": -1.0}, "soft_cap must be above 0"),
    ],
)
def test_what_it_cannot_do_it_says(change: dict[str, object], words: str) -> None:
    assert NativeAttention.unsupported(SPEC) is None
    assert words in str(NativeAttention.unsupported(replace(SPEC, **change)))  # type: ignore[arg-type]
