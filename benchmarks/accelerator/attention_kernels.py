"""Paged attention at published sizes, beside the device's libraries and the ceilings."""

import importlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from accelerator.bench import Bench
from accelerator.models import SHAPES
from accelerator.paged import Requests, Span, spec_of
from accelerator.records import Fact, Record
from accelerator.timing import turns
from engine.platform import AttentionBackend, KVCache, Packed, Prologue


def decode(bench: Bench, name: str, model: str, kv_dtype: str | None) -> Iterator[Record]:
    """One token of so many requests, each with so much context."""
    job, platform = bench.job, bench.parts.platform
    if kv_dtype is not None and kv_dtype not in platform.capabilities.kv_dtypes:
        yield Fact(name, "not offered by the platform")
        return
    shape = SHAPES[model]
    spec = spec_of(shape, platform, **({} if kv_dtype is None else {"kv_dtype": kv_dtype}))
    sizes = ((1, 1024), (1, 8192), (1, 32768), (16, 1024), (64, 1024), (256, 1024), (16, 8192))
    for count, context in job.pick(sizes, ((1, 20), (3, 20))):
        numbers = 2 * count * context * shape.kv_width
        num_bytes = numbers * (2.0 if kv_dtype is None else 1.0)
        sets = job.pick(turns(num_bytes, most=32), 1)
        requests = Requests(platform, spec, [context] * count, caches=sets)
        requests.fill([context - 1] * count)
        spans = [Span(i, context - 1, context) for i in range(count)]
        rows, plan = requests.rows(spans), requests.plan(spans)
        what = f"{name}, {count} x {context}"
        calls = [partial(requests.backend.forward, *rows, one, plan) for one in requests.caches]
        floor = bench.floor(
            num_bytes, 2 * numbers * shape.num_attention_heads / shape.num_key_value_heads
        )
        yield from bench.ours(what, calls, floor)
        if kv_dtype is None:
            yield from _decode_anchors(bench, what, requests, spans, sets)


def _decode_anchors(
    bench: Bench, what: str, requests: Requests, spans: Sequence[Span], sets: int
) -> Iterator[Record]:
    """Over keys and values that lie side by side, which no engine has."""
    spec, count, context = requests.spec, len(spans), spans[0].stop
    q = requests.rows(spans)[0]
    kv_shape = (count, context, spec.num_kv_heads, spec.head_dim)
    keys = [requests.k.view(kv_shape).clone() for _ in range(sets)]
    values = [requests.v.view(kv_shape).clone() for _ in range(sets)]
    attend = partial(functional.scaled_dot_product_attention, enable_gqa=True, scale=spec.scale)
    library = [
        partial(attend, q[:, :, None], k.transpose(1, 2), v.transpose(1, 2))
        for k, v in zip(keys, values, strict=True)
    ]
    yield from bench.anchor(what, "torch SDPA", library)
    if flash := _flash("flash_attn_with_kvcache"):
        whole = torch.full((count,), context, dtype=torch.int32, device=q.device)
        calls = [
            partial(flash, q[:, None], k, v, cache_seqlens=whole, softmax_scale=spec.scale)
            for k, v in zip(keys, values, strict=True)
        ]
        yield from bench.anchor(what, "FlashAttention", calls)


def prompt(bench: Bench, name: str, model: str) -> Iterator[Record]:
    """So many prompts of so many tokens; behind so many that are cached."""
    job, platform = bench.job, bench.parts.platform
    spec = spec_of(SHAPES[model], platform)
    sizes = ((1, 1024, 0), (8, 1024, 0), (1, 8192, 0), (1, 1024, 8192), (64, 128, 0))
    for count, length, cached in job.pick(sizes, ((2, 20, 0), (1, 9, 16))):
        requests = Requests(platform, spec, [cached + length] * count)
        requests.fill([cached] * count)
        spans = [Span(i, cached, cached + length) for i in range(count)]
        rows, plan = requests.rows(spans), requests.plan(spans)
        behind = f" behind {cached}" if cached else ""
        what = f"{name}, {count} x {length}{behind}"
        seen = count * (length * cached + length**2 / 2)
        operations = 4 * seen * spec.num_heads * spec.head_dim
        floor = bench.floor(
            2 * count * (cached + length) * 2 * spec.num_kv_heads * spec.head_dim, operations
        )
        call = partial(requests.backend.forward, *rows, requests.caches[0], plan)
        yield from bench.ours(what, [call], floor)
        if not cached:
            yield from _prompt_anchors(bench, what, requests, count, length)


def prologue(bench: Bench, name: str, model: str) -> Iterator[Record]:
    """A decode step's norms of heads, rotary, store and attention in the backend's one call, beside
    the engine's own operations one by one."""
    job, platform, shape = bench.job, bench.parts.platform, SHAPES[model]
    spec, context = spec_of(shape, platform), job.pick(256, 20)
    wanted = Prologue(
        rotary_dim=spec.head_dim, norm_epsilon=1e-6 if shape.model_type == "qwen3" else None
    )
    norms = [bench.normal(spec.head_dim) if wanted.norm_epsilon else None] * 2
    for count in job.pick((1, 64, 256), (2,)):
        requests = Requests(platform, spec, [context] * count)
        if not requests.backend.fuses(wanted):
            yield Fact(name, "not offered by the platform")
            return
        requests.fill([context - 1] * count)
        plan = requests.plan([Span(i, context - 1, context) for i in range(count)])
        heads = spec.num_heads + 2 * spec.num_kv_heads
        angles = torch.rand(count, spec.head_dim // 2, device=job.device)
        packed = Packed(
            bench.normal(count, heads * spec.head_dim), angles.cos(), angles.sin(), *norms
        )
        arguments = (packed, wanted, requests.caches[0], plan)
        what = f"{name}, {count} x {context}"
        floor = bench.floor(4 * count * context * shape.kv_width)
        yield from bench.ours(what, [partial(requests.backend.forward_packed, *arguments)], floor)
        apart = _one_by_one(bench, requests.backend)
        yield from bench.anchor(what, "ours, one by one", [partial(apart, *arguments)])


def _one_by_one(bench: Bench, backend: AttentionBackend) -> Callable[..., object]:
    """As `forward_packed`."""
    spec = backend.spec
    norm = bench.choose("rms_norm", width=spec.head_dim)
    rotary = bench.choose("rotary", head_dim=spec.head_dim, rotary_dim=spec.head_dim)
    heads = [spec.num_heads, spec.num_kv_heads, spec.num_kv_heads]

    def forward(packed: Packed, wanted: Prologue, cache: KVCache, plan: Any) -> object:
        rows = packed.qkv_TX.view(-1, sum(heads), spec.head_dim)
        q, k, v = torch.split(rows, heads, 1)
        if wanted.norm_epsilon is not None:
            q = norm(q, packed.query_norm_D, wanted.norm_epsilon)
            k = norm(k, packed.key_norm_D, wanted.norm_epsilon)
        q, k = rotary(q, k, packed.cos_TR, packed.sin_TR)
        return backend.forward(q, k, v, cache, plan)

    return forward


def _prompt_anchors(
    bench: Bench, what: str, requests: Requests, count: int, length: int
) -> Iterator[Record]:
    spec = requests.spec
    q = requests.q.view(count, length, spec.num_heads, spec.head_dim)
    k, v = (
        x.view(count, length, spec.num_kv_heads, spec.head_dim) for x in (requests.k, requests.v)
    )
    group = spec.num_heads // spec.num_kv_heads
    wide = [x.repeat_interleave(group, 2).transpose(1, 2) for x in (k, v)]
    attend = partial(functional.scaled_dot_product_attention, is_causal=True, scale=spec.scale)
    backends = [("torch SDPA, flash", SDPBackend.FLASH_ATTENTION)]
    if bench.job.on_gpu:
        backends.append(("torch SDPA, cuDNN", SDPBackend.CUDNN_ATTENTION))
    for who, backend in backends:
        with sdpa_kernel(backend):
            yield from bench.anchor(what, who, [partial(attend, q.transpose(1, 2), *wide)])
    if flash := _flash("flash_attn_func"):
        call = partial(flash, q, k, v, softmax_scale=spec.scale, causal=True)
        yield from bench.anchor(what, "FlashAttention", [call])


def _flash(function: str) -> Callable[..., Any] | None:
    """Of FlashAttention 3 or 2, if one is installed."""
    for module in ("flash_attn_interface", "flash_attn"):
        try:
            found: Callable[..., Any] = vars(importlib.import_module(module))[function]
        except (ImportError, KeyError):
            continue
        return found
    return None
