"""The engine's kernels at published sizes, beside the device's own libraries and the ceilings."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from accelerator import attention_kernels, ceilings
from accelerator.bench import Bench
from accelerator.job import Job, Measure, Parts
from accelerator.models import SHAPES
from accelerator.records import OURS, Fact, Record, Value
from accelerator.timing import Call, time_host, turns

WEIGHT_BYTES = {None: 2.0, "fp8": 1.0, "int8": 1.0, "int4": 0.5}


def measures(job: Job) -> list[Measure]:
    parts = Parts(job)
    large, small = job.pick(("llama-3.1-8b", "qwen3-0.6b"), ("tiny-llama", "tiny-qwen3"))
    runs: list[tuple[str, Callable[..., Iterator[Record]], tuple[Any, ...]]] = [
        (f"decode attention, {large}", attention_kernels.decode, (large, None)),
        (f"prompt attention, {large}", attention_kernels.prompt, (large,)),
        (f"linear, {large}", linear, (large, None)),
        (f"linear fp8, {large}", linear, (large, "fp8")),
        (f"pointwise, {large}", pointwise, (large,)),
        (f"attention with its prologue, {small}", attention_kernels.prologue, (small,)),
        (f"linear, {small}", linear, (small, None)),
        (f"decode attention, {small}", attention_kernels.decode, (small, None)),
        (f"decode attention fp8_e4m3, {large}", attention_kernels.decode, (large, "fp8_e4m3")),
        ("sampling", sampling, ()),
        (f"linear int4, {large}", linear, (large, "int4")),
        (f"linear int8, {large}", linear, (large, "int8")),
        (f"pointwise, {small}", pointwise, (small,)),
        ("experts", experts, ()),
    ]
    return [
        Measure(name, partial(run, Bench(job, parts), name, *arguments), estimate_s=3)
        for name, run, arguments in runs
    ]


def linear(bench: Bench, name: str, model: str, quantization: str | None) -> Iterator[Record]:
    job, platform = bench.job, bench.parts.platform
    if quantization is not None and quantization not in platform.capabilities.quantization:
        yield Fact(name, "not offered by the platform")
        return
    shape = SHAPES[model]
    matrices = dict(shape.linears)
    if quantization is None:
        matrices["output"] = (shape.hidden_size, shape.vocab_size)
    rows = job.pick((1, 2, 4, 8, 16, 64, 256), (1, 3))
    if quantization is not None:
        rows = job.pick((1, 8, 64, 512), (1,))
    for matrix, (inputs, outputs) in matrices.items():
        stored = WEIGHT_BYTES[quantization] * inputs * outputs
        weights = [bench.normal(outputs, inputs) for _ in range(job.pick(turns(stored), 1))]
        make = bench.choose(
            "linear",
            in_features=inputs,
            out_features=outputs,
            bias=False,
            quantization=quantization,
        )
        layers = [make(weight.clone(), None) for weight in weights]
        for count in rows:
            what = f"{name}, {matrix} {inputs}x{outputs}, M {count}"
            x = bench.normal(count, inputs)
            moved = stored + 2 * count * (inputs + outputs)
            fp8 = quantization == "fp8"
            floor = bench.floor(moved, 2 * count * inputs * outputs, fp8=fp8)
            yield from bench.ours(what, [partial(layer, x) for layer in layers], floor)
            library = [partial(functional.linear, x, weight) for weight in weights]
            yield from bench.anchor(what, "torch in bf16", library)
            if fp8 and ceilings.FORMAT in job.facts:
                narrow = getattr(torch, str(job.facts[ceilings.FORMAT]))
                yield from bench.anchor(what, "torch._scaled_mm", _scaled(x, weights, narrow))


def _scaled(x: Tensor, weights: Sequence[Tensor], dtype: torch.dtype) -> list[Call]:
    """The library's product of numbers that are fp8 already: what rounds `x` is not in its time."""
    one, narrow = torch.ones((), device=x.device), x.to(dtype)
    return [
        partial(torch._scaled_mm, narrow, w.to(dtype).t(), one, one, out_dtype=torch.bfloat16)
        for w in weights
    ]


def pointwise(bench: Bench, name: str, model: str) -> Iterator[Record]:
    shape, job = SHAPES[model], bench.job
    width, inner, size = shape.hidden_size, shape.intermediate_size, shape.head_dim
    add_norm = bench.choose("add_rms_norm", width=width)
    multiply = bench.choose("silu_and_multiply", width=inner)
    rotary = bench.choose("rotary", head_dim=size, rotary_dim=size)
    weight = bench.normal(width)

    def plain_norm(x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        total = x + residual
        return functional.rms_norm(total, (width,), weight, 1e-5), total

    def plain_multiply(x: Tensor) -> Tensor:
        gate, up = x.chunk(2, -1)
        return functional.silu(gate) * up

    for rows in job.pick((1, 64, 2048), (2,)):
        what = f"{name}, residual and norm, {rows} rows"
        moved = 2 * 4 * rows * width
        sets = job.pick(turns(moved), 1)
        pairs = [(bench.normal(rows, width), bench.normal(rows, width)) for _ in range(sets)]
        calls = [partial(add_norm, *pair, weight, 1e-5) for pair in pairs]
        yield from bench.ours(what, calls, bench.floor(moved))
        yield from bench.anchor(what, "torch", [partial(plain_norm, *pair) for pair in pairs])
        what = f"{name}, SiLU times gate, {rows} rows"
        moved = 2 * 3 * rows * inner
        inputs = [bench.normal(rows, 2 * inner) for _ in range(job.pick(turns(moved), 1))]
        yield from bench.ours(what, [partial(multiply, x) for x in inputs], bench.floor(moved))
        yield from bench.anchor(what, "torch", [partial(plain_multiply, x) for x in inputs])
        what = f"{name}, rotary, {rows} rows"
        heads = (shape.num_attention_heads, shape.num_key_value_heads)
        moved = 2 * 2 * rows * sum(heads) * size
        angles = torch.rand(rows, size // 2, device=job.device)
        qk = [
            [bench.normal(rows, n, size) for n in heads] for _ in range(job.pick(turns(moved), 1))
        ]
        calls = [partial(rotary, *both, angles.cos(), angles.sin()) for both in qk]
        yield from bench.ours(what, calls, bench.floor(moved))


def sampling(bench: Bench, name: str) -> Iterator[Record]:
    """The host's part of drawing is in its time: it takes numpy arrays."""
    job = bench.job
    size = job.pick(151936, 500)
    argmax = bench.choose("argmax", "float32", vocab_size=size)
    sample = bench.choose("sample", "float32", vocab_size=size)
    for rows in job.pick((1, 256), (2,)):
        moved = 4 * rows * size
        scores = [
            torch.randn(rows, size, device=job.device) for _ in range(job.pick(turns(moved), 1))
        ]
        what = f"{name}, argmax, {rows} rows"
        yield from bench.ours(what, [partial(argmax, one) for one in scores], bench.floor(moved))
        library = [partial(torch.max, one, dim=-1) for one in scores]
        yield from bench.anchor(what, "torch", library)
        highest = scores[0].amax(-1)
        uniforms = np.random.default_rng(0).random((rows, 2), dtype=np.float32)
        for filters, top_k, top_p in (("no filter", 0, 1.0), ("top-k 50, top-p 0.9", 50, 0.9)):
            numbers = (
                np.arange(rows),
                np.full(rows, 0.6, np.float32),
                np.full(rows, top_k, np.int64),
                np.full(rows, top_p, np.float32),
                np.zeros(rows, np.float32),
                uniforms,
            )
            call = partial(sample, scores[0], highest, *numbers)
            call()
            what = f"{name}, {filters}, {rows} rows"
            seconds = time_host(call, job.synchronize, times=10)
            yield Value(what, OURS, 1e6 * seconds, "us", floor=1e6 * bench.floor(moved))
            softmax = partial(_drawn_by_torch, scores[0], top_k, top_p)
            softmax()
            seconds = time_host(softmax, job.synchronize, times=10)
            yield Value(what, "torch, sorted", 1e6 * seconds, "us")


def _drawn_by_torch(scores: Tensor, top_k: int, top_p: float) -> Tensor:
    weights, ids = (scores / 0.6).softmax(-1), None
    if top_k or top_p < 1:
        weights, ids = weights.sort(-1, descending=True)
        weights = weights.masked_fill(weights.cumsum(-1) - weights >= top_p, 0.0)
        weights[:, top_k or None :] = 0
    drawn = torch.multinomial(weights, 1)
    return drawn if ids is None else ids.gather(-1, drawn)


def experts(bench: Bench, name: str) -> Iterator[Record]:
    """A mixture of Qwen3-30B-A3B's shape; each token goes to experts drawn at random."""
    job = bench.job
    count, active, width, inner = job.pick((128, 8, 2048, 768), (8, 2, 64, 32))
    gate_up = bench.normal(count, 2 * inner, width) * width**-0.5
    down = bench.normal(count, width, inner) * inner**-0.5
    layer = bench.choose(
        "mixture_of_experts", experts=count, width=width, expert_width=inner, quantization=None
    )(gate_up, down)
    for rows in job.pick((1, 16, 256, 2048), (1, 3)):
        x = bench.normal(rows, width)
        share, ids = torch.rand(rows, count, device=job.device).softmax(-1).topk(active)
        read = 2 * 3 * inner * width * len(set(ids.flatten().tolist()))
        operations = 2 * 3 * inner * width * rows * active
        floor = bench.floor(read, operations)
        yield from bench.ours(f"{name}, {rows} rows", [partial(layer, x, share, ids)], floor)
