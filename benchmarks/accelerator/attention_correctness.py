"""Paged attention at published sizes against float64. Caches hold NaN before they are written."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from accelerator.job import Job, Parts
from accelerator.models import SHAPES, ModelShape
from accelerator.nearness import COARSE, ROUNDING, near, normal, rms_norm, rotated
from accelerator.paged import Requests, Span, spec_of
from accelerator.records import Fact, Record
from engine.errors import UnsupportedError
from engine.platform.attention import Packed, Prologue
from engine.testing.checks.paged import filled


def decode(
    job: Job, parts: Parts, name: str, shape: ModelShape, kv_dtype: str | None = None
) -> Iterator[Record]:
    """One token of requests of very different lengths, some far longer than one split."""
    if kv_dtype is not None and kv_dtype not in parts.platform.capabilities.kv_dtypes:
        yield Fact(name, "not offered by the platform")
        return
    changes = {} if kv_dtype is None else {"kv_dtype": kv_dtype}
    spec = spec_of(shape, parts.platform, **changes)
    lengths = job.pick((1, 15, 16, 17, 255, 257, 1000, 4097, 16384), (1, 15, 17, 40))
    requests = _poisoned(parts, spec, lengths)
    requests.fill([length - 1 for length in lengths])
    spans = [Span(i, length - 1, length) for i, length in enumerate(lengths)]
    allowed = ROUNDING[spec.dtype] if kv_dtype is None else COARSE[kv_dtype]
    yield near(name, requests.forward(spans), requests.exact(spans), allowed)


def prompts(job: Job, parts: Parts, name: str, shape: ModelShape) -> Iterator[Record]:
    """Prompts of different lengths in one step."""
    spec = spec_of(shape, parts.platform)
    lengths = job.pick((1, 17, 128, 1000, 2049), (1, 17, 40))
    requests = _poisoned(parts, spec, lengths)
    spans = [Span(i, 0, length) for i, length in enumerate(lengths)]
    found = requests.forward(spans)
    yield near(name, found, requests.exact(spans), ROUNDING[spec.dtype])


def mixed(job: Job, parts: Parts, name: str, shape: ModelShape) -> Iterator[Record]:
    """A decode, a part of a prompt behind a part that is cached, and a whole prompt, in a step."""
    capabilities = parts.platform.capabilities
    if not (capabilities.mixed_batches and capabilities.chunked_prefill):
        yield Fact(name, "not offered by the platform")
        return
    spec = spec_of(shape, parts.platform)
    lengths = job.pick((3000, 2500, 700), (30, 25, 7))
    cached = job.pick((2999, 1777, 0), (29, 17, 0))
    requests = _poisoned(parts, spec, lengths)
    requests.fill(cached)
    spans = [Span(i, *ends) for i, ends in enumerate(zip(cached, lengths, strict=True))]
    found = requests.forward(spans)
    yield near(name, found, requests.exact(spans), ROUNDING[spec.dtype])


def packed(job: Job, parts: Parts, name: str, shape: ModelShape) -> Iterator[Record]:
    """Norms of heads if the model has them, rotary, store and attention in the backend's one call:
    a prompt, then a token more of it."""
    spec, size = spec_of(shape, parts.platform), shape.head_dim
    prologue = Prologue(rotary_dim=size, norm_epsilon=1e-6 if shape.model_type == "qwen3" else None)
    length = job.pick(1001, 20)
    requests = _poisoned(parts, spec, [length])
    if not requests.backend.fuses(prologue):
        yield Fact(name, "not offered by the platform")
        return
    heads = (spec.num_heads, spec.num_kv_heads, spec.num_kv_heads)
    raw = [normal(job, spec.dtype, length, count, size) for count in heads]
    weights = [normal(job, spec.dtype, size) for _ in range(2)]
    angles = torch.rand(length, size // 2, device=job.device) * 1000
    q, k = raw[0].double(), raw[1].double()
    if prologue.norm_epsilon is not None:
        q, k = (rms_norm(x, w, 1e-6) for x, w in zip((q, k), weights, strict=True))
    cos, sin = angles.cos(), angles.sin()
    requests.q, requests.k = (rotated(x, cos.double(), sin.double()) for x in (q, k))
    requests.v = raw[2]
    rows = torch.cat([x.flatten(1) for x in raw], 1)
    norms = weights if prologue.norm_epsilon is not None else [None, None]
    for span in (Span(0, 0, length - 1), Span(0, length - 1, length)):
        here = slice(span.start, span.stop)
        found, requests.caches[0] = requests.backend.forward_packed(
            Packed(rows[here], cos[here], sin[here], *norms),
            prologue,
            requests.caches[0],
            requests.plan([span]),
        )
        what = f"{name}, {span.stop - span.start} rows"
        yield near(what, found, requests.exact([span]), ROUNDING[spec.dtype])


def windowed(job: Job, parts: Parts, name: str) -> Iterator[Record]:
    shape = SHAPES["tiny-llama"]
    heads = {"num_heads": 8, "num_kv_heads": 4, "head_dim": job.pick(256, 32)}
    limits = {"window": job.pick(1024, 9), "soft_cap": 50.0, "scale": 0.0625}
    try:
        spec = spec_of(shape, parts.platform, **heads, **limits)
        requests = _poisoned(parts, spec, job.pick((1300, 2600), (21, 40)))
    except UnsupportedError as error:
        yield Fact(name, str(error))
        return
    longest = requests.lengths
    requests.fill([longest[0] - 1, longest[1] // 2])
    spans = [Span(0, longest[0] - 1, longest[0]), Span(1, longest[1] // 2, longest[1])]
    found = requests.forward(spans)
    yield near(name, found, requests.exact(spans), ROUNDING[spec.dtype])


def _poisoned(parts: Parts, spec: Any, lengths: Sequence[int]) -> Requests:
    requests = Requests(parts.platform, spec, lengths)
    blocks = range(requests.num_blocks)
    requests.caches = [
        filled(requests.backend, cache, blocks, float("nan")) for cache in requests.caches
    ]
    return requests
