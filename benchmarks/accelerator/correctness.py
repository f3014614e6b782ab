"""The engine's kernels at published sizes, against float64 on the same device.

See `nearness` for what counts as right.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from accelerator import attention_correctness as attention
from accelerator.job import Job, Measure, Parts
from accelerator.models import SHAPES, ModelShape
from accelerator.nearness import COARSE, ROUNDING, near, normal, rms_norm, rotated
from accelerator.paged import spec_of
from accelerator.records import Check, Fact, Record

MODELS = ("llama-3.1-8b", "qwen3-0.6b", "qwen2.5-0.5b")
REST = "rest"
KV_DTYPES = ("fp8_e4m3", "fp8_e5m2", "int8")

#: Its name, what makes its records of job, parts and name, and what that is given besides.
Planned = tuple[str, Callable[..., Iterator[Record]], tuple[Any, ...]]


def measures(job: Job, parts: Parts | None = None) -> list[Measure]:
    """Of the models that the job names; "rest" is what hangs on no model."""
    parts = parts or Parts(job)
    usual = job.pick((*MODELS, REST), ("tiny-qwen3", REST))
    checks: list[Planned] = []
    for name in job.arguments.get("models", usual):
        checks += _rest(job) if name == REST else _of(name)
    return [
        Measure(name, partial(check, job, parts, name, *arguments))
        for name, check, arguments in checks
    ]


def _of(name: str) -> "list[Planned]":
    shape = SHAPES[name]
    return [
        (f"decode attention, {name}", attention.decode, (shape,)),
        (f"prompt attention, {name}", attention.prompts, (shape,)),
        (f"mixed attention, {name}", attention.mixed, (shape,)),
        (f"attention with its prologue, {name}", attention.packed, (shape,)),
        (f"linear, {name}", linear, (shape, None)),
        (f"norms, {name}", norms, (shape,)),
        (f"rotary, {name}", rotary, (shape,)),
        (f"gates, {name}", gates, (shape,)),
    ]


def _rest(job: Job) -> "list[Planned]":
    shape = SHAPES[job.pick(MODELS[0], "tiny-qwen3")]
    return [
        ("window and soft cap, head size 256", attention.windowed, ()),
        *((f"linear {bits}", linear, (shape, bits)) for bits in ("fp8", "int8", "int4")),
        *((f"cache {kind}", attention.decode, (shape, kind)) for kind in KV_DTYPES),
        ("experts", experts, ()),
        ("sampling", sampling, ()),
    ]


def linear(
    job: Job, parts: Parts, name: str, shape: ModelShape, quantization: str | None
) -> Iterator[Record]:
    """Few rows and many; the worst of all matrices of a layer."""
    if quantization is not None and quantization not in parts.platform.capabilities.quantization:
        yield Fact(name, "not offered by the platform")
        return
    dtype = spec_of(shape, parts.platform).dtype
    allowed = ROUNDING[dtype] if quantization is None else COARSE[quantization]
    for matrix, (inputs, outputs) in shape.linears.items():
        weight = normal(job, dtype, outputs, inputs)
        facts = {"in_features": inputs, "out_features": outputs, "bias": False}
        layer = _chosen(parts, "linear", dtype, quantization=quantization, **facts)(
            weight.clone(), None
        )
        for rows in job.pick((1, 3, 16, 33, 300), (1, 3)):
            x = normal(job, dtype, rows, inputs)
            right = x.double() @ weight.double().T
            yield near(f"{name}, {matrix}, {rows} rows", layer(x), right, allowed)


def norms(job: Job, parts: Parts, name: str, shape: ModelShape) -> Iterator[Record]:
    dtype, width = spec_of(shape, parts.platform).dtype, shape.hidden_size
    x, residual = (normal(job, dtype, job.pick(257, 3), width) for _ in range(2))
    weight = normal(job, dtype, width)
    summed = x + residual
    norm = _chosen(parts, "rms_norm", dtype, width=width)
    yield near(name, norm(x, weight, 1e-5), rms_norm(x, weight, 1e-5), ROUNDING[dtype])
    add_norm = _chosen(parts, "add_rms_norm", dtype, width=width)
    normed, total = add_norm(x.clone(), residual.clone(), weight, 1e-5)
    yield near(f"{name}, with a sum", normed, rms_norm(summed, weight, 1e-5), ROUNDING[dtype])
    yield near(f"{name}, the sum", total, summed.double(), ROUNDING[dtype])


def rotary(job: Job, parts: Parts, name: str, shape: ModelShape) -> Iterator[Record]:
    """Positions up to the longest context."""
    dtype, size = spec_of(shape, parts.platform).dtype, shape.head_dim
    tokens, facts = job.pick(257, 3), {"head_dim": size, "rotary_dim": size}
    positions = torch.randint(shape.max_position_embeddings, (tokens,), device=job.device)
    frequencies = 1e4 ** -(torch.arange(size // 2, device=job.device) / (size // 2))
    cos, sin = _chosen(parts, "rotary_angles", "float32", **facts)(positions, frequencies, 1.0)
    angles = (positions[:, None].float() * frequencies).double()
    yield near(
        f"{name}, angles", torch.stack((cos, sin)), torch.stack((angles.cos(), angles.sin())), 1e-4
    )
    q = normal(job, dtype, tokens, shape.num_attention_heads, size)
    k = normal(job, dtype, tokens, shape.num_key_value_heads, size)
    right = [rotated(x, cos.double(), sin.double()) for x in (q, k)]
    found = _chosen(parts, "rotary", dtype, **facts)(q.clone(), k.clone(), cos, sin)
    for one, expected, what in zip(found, right, ("queries", "keys"), strict=True):
        yield near(f"{name}, {what}", one, expected, ROUNDING[dtype])


def gates(job: Job, parts: Parts, name: str, shape: ModelShape) -> Iterator[Record]:
    dtype, width = spec_of(shape, parts.platform).dtype, shape.intermediate_size
    x = normal(job, dtype, job.pick(257, 3), 2 * width)
    gate, up = x.double().chunk(2, -1)
    for op, right in (
        ("silu_and_multiply", functional.silu(gate) * up),
        ("gelu_tanh_and_multiply", functional.gelu(gate, approximate="tanh") * up),
    ):
        found = _chosen(parts, op, dtype, width=width)(x.clone())
        yield near(f"{name}, {op}", found, right, ROUNDING[dtype])


def experts(job: Job, parts: Parts, name: str) -> Iterator[Record]:
    """A mixture of Qwen3-30B-A3B's shape."""
    dtype = spec_of(SHAPES["tiny-llama"], parts.platform).dtype
    count, active, width, inner = job.pick((128, 8, 2048, 768), (8, 2, 64, 32))
    gate_up = normal(job, dtype, count, 2 * inner, width) * width**-0.5
    down = normal(job, dtype, count, width, inner) * inner**-0.5
    facts = {"experts": count, "width": width, "expert_width": inner, "quantization": None}
    layer = _chosen(parts, "mixture_of_experts", dtype, **facts)(gate_up.clone(), down.clone())
    for rows in job.pick((1, 7, 100), (1, 7)):
        x = normal(job, dtype, rows, width)
        share, ids = torch.rand(rows, count, device=job.device).softmax(-1).topk(active)
        right = torch.zeros(rows, width, device=job.device, dtype=torch.float64)
        for row in range(rows):
            for part, expert in zip(share[row].double(), ids[row], strict=True):
                gate, up = (gate_up[expert].double() @ x[row].double()).chunk(2)
                right[row] += part * (down[expert].double() @ (functional.silu(gate) * up))
        yield near(f"{name}, {rows} rows", layer(x, share, ids), right, 2 * ROUNDING[dtype])


def sampling(job: Job, parts: Parts, name: str) -> Iterator[Record]:
    """The lowest id of the highest score; and the same draws as the core's reference, but where
    the order of a sum decides."""
    rows, size = job.pick((64, 151936), (4, 500))
    scores = torch.randn(rows, size, device=job.device) * 3
    rounded = scores.round(decimals=1)  # several share the highest
    highest, ids = _chosen(parts, "argmax", "float32", vocab_size=size)(rounded)
    on_host = rounded.cpu()
    lowest = (on_host == on_host.amax(-1, keepdim=True)).int().argmax(-1)
    same = int((ids.cpu() == lowest).sum())
    exact = bool((highest.cpu() == on_host.amax(-1)).all())
    yield Check(f"{name}, argmax", same == rows and exact, f"{same} of {rows} ids")
    highest, on_host = scores.amax(-1), scores.cpu()
    sample = _chosen(parts, "sample", "float32", vocab_size=size)
    reference = parts.table.reference("sample")
    uniforms = np.random.default_rng(0).random((rows, 2), dtype=np.float32)
    for filters, top_k, top_p, min_p in (
        ("no filter", 0, 1.0, 0.0),
        ("top-k", 40, 1.0, 0.0),
        ("top-p", 0, 0.9, 0.0),
        ("min-p", 0, 1.0, 0.05),
        ("all filters", 50, 0.95, 0.01),
    ):
        numbers = (
            np.arange(rows),
            np.full(rows, 0.8, np.float32),
            np.full(rows, top_k, np.int64),
            np.full(rows, top_p, np.float32),
            np.full(rows, min_p, np.float32),
            uniforms,
        )
        found = sample(scores.clone(), highest, *numbers).cpu()
        right = reference(on_host.clone(), on_host.amax(-1), *numbers)
        equal = int((found == right).sum())
        yield Check(f"{name}, {filters}", equal >= 0.95 * rows, f"{equal} of {rows} draws")


def _chosen(parts: Parts, operation: str, dtype: str, **facts: Any) -> Callable[..., Any]:
    return parts.table.choose(operation, dtype=dtype, device=parts.platform.device, **facts)
