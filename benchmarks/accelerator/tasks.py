"""What launch parameters are tuned on: calls of the engine at published sizes, by kernel."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Protocol

import torch
from torch import Tensor

from accelerator.job import Job, Parts
from accelerator.models import SHAPES
from accelerator.paged import Requests, Span, spec_of
from accelerator.timing import Call, turns

#: Of equal sets of inputs that take turns.
MOST_SETS = 8


class Task(Protocol):
    label: str

    def calls(self, parts: Parts) -> list[Call]:
        """Equal calls that take turns, with the launch parameters that `parts` has now."""


def tasks(kernel: str, job: Job) -> list[Task]:
    """
    Raises:
        LookupError: nothing here launches it, or not so that its time would show.
    """
    if kernel not in KERNELS:
        raise LookupError(f"kernel {kernel!r} has no tasks; there are {', '.join(sorted(KERNELS))}")
    return KERNELS[kernel](job)


class Attention:
    """Requests of which each computes its last `rows` tokens behind the others."""

    def __init__(self, job: Job, model: str, count: int, length: int, rows: int) -> None:
        self.label = f"{model}, {rows} of {length} tokens of {count} requests"
        self._job, self._shape = job, SHAPES[model]
        self._count, self._length, self._rows = count, length, rows
        self._requests: Requests | None = None

    def calls(self, parts: Parts) -> list[Call]:
        if self._requests is None:
            self._requests = self._made(parts)
        requests, cached = self._requests, self._length - self._rows
        requests.backend = parts.platform.attention(requests.spec)
        spans = [Span(i, cached, self._length) for i in range(self._count)]
        rows, plan = requests.rows(spans), requests.plan(spans)
        return [partial(_first, requests.backend.forward, *rows, c, plan) for c in requests.caches]

    def _made(self, parts: Parts) -> Requests:
        read = 4 * self._count * self._length * self._shape.kv_width
        sets = self._job.pick(turns(read, MOST_SETS), 1)
        spec = spec_of(self._shape, parts.platform)
        made = Requests(parts.platform, spec, [self._length] * self._count, caches=sets)
        made.fill([self._length - self._rows] * self._count)
        return made


class Linear:
    def __init__(
        self, job: Job, model: str, matrix: str, rows: int, quantization: str | None = None
    ) -> None:
        self.label = f"{model}, {matrix}, {rows} rows, {quantization or 'bf16'}"
        self._job, self._rows, self._quantization = job, rows, quantization
        self._inputs, self._outputs = SHAPES[model].linears[matrix]

    def calls(self, parts: Parts) -> list[Call]:
        x = _normal(self._job, self._rows, self._inputs)
        make = _chosen(parts, "linear", self._quantization)
        shape = (self._outputs, self._inputs)
        read = self._outputs * self._inputs
        sets = self._job.pick(turns(read, MOST_SETS), 1)
        layers = [make(_normal(self._job, *shape), None) for _ in range(sets)]
        return [partial(layer, x) for layer in layers]


class Experts:
    def __init__(self, job: Job, rows: int) -> None:
        self.label = f"Qwen3-30B-A3B's mixture, {rows} rows"
        self._job, self._rows = job, rows

    def calls(self, parts: Parts) -> list[Call]:
        count, active, width, inner = self._job.pick((128, 8, 2048, 768), (8, 2, 64, 32))
        gate_up = _normal(self._job, count, 2 * inner, width) * width**-0.5
        down = _normal(self._job, count, width, inner) * inner**-0.5
        layer = _chosen(parts, "mixture_of_experts", None)(gate_up, down)
        scores = torch.randn(
            self._rows, count, generator=_generator(self._job), device=self._job.device
        )
        share, ids = scores.softmax(-1).topk(active)
        return [partial(layer, _normal(self._job, self._rows, width), share, ids)]


class Pointwise:
    """One operation on rows of one width."""

    def __init__(
        self, job: Job, operation: str, rows: int, width: int, make: Callable[..., list[Tensor]]
    ) -> None:
        self.label = f"{operation}, {rows} rows of {width}"
        self._job, self._operation, self._rows, self._width = job, operation, rows, width
        self._make = make

    def calls(self, parts: Parts) -> list[Call]:
        dtype = "float32" if self._operation == "argmax" else "bfloat16"
        facts = {"width": self._width, "vocab_size": self._width}
        device = parts.platform.device
        function = parts.table.choose(self._operation, dtype=dtype, device=device, **facts)
        sets = self._job.pick(turns(4 * self._rows * self._width, MOST_SETS), 1)
        inputs = [self._make(self._job, self._rows, self._width) for _ in range(sets)]
        return [partial(function, *one) for one in inputs]


def _decode(job: Job) -> list[Task]:
    sizes = job.pick(((1, 1024), (1, 8192), (16, 1024), (64, 1024), (16, 8192)), ((2, 20),))
    return [Attention(job, model, *size, 1) for model in _models(job) for size in sizes]


def _prompts(job: Job) -> list[Task]:
    sizes = job.pick(
        ((1, 1024, 1024), (8, 1024, 1024), (1, 8192, 8192), (1, 8192, 512)), ((2, 20, 20),)
    )
    return [Attention(job, model, *size) for model in _models(job) for size in sizes]


def _single(job: Job) -> list[Task]:
    return [
        Linear(job, model, matrix, 1)
        for model in _models(job)[:2]
        for matrix in SHAPES[model].linears
    ]


def _rounded(job: Job) -> list[Task]:
    model = _models(job)[0]
    rows, matrices = (
        job.pick((1, 16, 64, 512), (1,)),
        job.pick(("qkv", "gate and up", "down"), ("qkv",)),
    )
    found: list[Task] = [
        Linear(job, model, matrix, count, bits)
        for matrix, count, bits in product(matrices, rows, ("fp8", "int8", "int4"))
    ]
    return found + [Linear(job, model, matrix, 8) for matrix in matrices]


def _pointwise(
    job: Job, operation: str, widths: Sequence[int], make: Callable[..., list[Tensor]]
) -> list[Task]:
    rows = job.pick((1, 64, 2048) if operation != "argmax" else (1, 64, 256), (2,))
    return [
        Pointwise(job, operation, count, width, make)
        for count, width in product(rows, job.pick(widths, widths[:1]))
    ]


def _norm_inputs(job: Job, rows: int, width: int) -> list[Tensor]:
    return [_normal(job, rows, width), _normal(job, rows, width), _normal(job, width), 1e-5]  # type: ignore[list-item]


def _gate_inputs(job: Job, rows: int, width: int) -> list[Tensor]:
    return [_normal(job, rows, 2 * width)]


def _score_inputs(job: Job, rows: int, width: int) -> list[Tensor]:
    return [_normal(job, rows, width).float()]


KERNELS: dict[str, Callable[[Job], list[Task]]] = {
    "attention_decode": _decode,
    "attention_merge": _decode,
    "attention_prefill": _prompts,
    "gemv": _single,
    "linear": _rounded,
    "experts": lambda job: [Experts(job, rows) for rows in job.pick((1, 16, 256, 2048), (1,))],
    "rms_norm": lambda job: _pointwise(job, "add_rms_norm", (896, 1024, 4096, 8192), _norm_inputs),
    "multiply": lambda job: _pointwise(job, "silu_and_multiply", (3072, 14336), _gate_inputs),
    "argmax": lambda job: _pointwise(job, "argmax", (128256, 151936), _score_inputs),
}


def _models(job: Job) -> tuple[str, ...]:
    return job.pick(("llama-3.1-8b", "qwen3-0.6b", "qwen2.5-0.5b"), ("tiny-llama",))


def _chosen(
    parts: Parts, operation: str, quantization: str | None
) -> Callable[..., Callable[..., Tensor]]:
    return parts.table.choose(
        operation,
        dtype="bfloat16",
        device=parts.platform.device,
        quantization=quantization,
        bias=False,
    )


def _generator(job: Job) -> torch.Generator:
    return torch.Generator(job.device).manual_seed(0)


def _normal(job: Job, *shape: int) -> Tensor:
    """The same numbers for every candidate."""
    return torch.randn(shape, generator=_generator(job), device=job.device).bfloat16()


def _first(function: Callable[..., tuple[Tensor, object]], *arguments: object) -> Tensor:
    return function(*arguments)[0]
