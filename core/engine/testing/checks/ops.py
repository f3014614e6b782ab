"""Every named operation as the platform has it, against the core's reference in float32.

Where the platform brings nothing better the reference itself is run on the device: that too must
be right there.

T tokens, W width, H query heads, K key/value heads, D head dim, R rotated part of D.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine import ops
from engine.platform import OpTable
from engine.testing.checks.case import Case, needs_dtype
from engine.testing.checks.numbers import DTYPES, generator, relative_error
from engine.testing.checks.subject import Subject

#: Largest difference over the largest value of the right answer. Results are rounded to the dtype,
#: and some references round in between.
TOLERANCES = {"float32": 2e-5, "bfloat16": 2e-2, "float16": 3e-3}

TOKENS = (1, 2, 7, 33)


@dataclass(frozen=True, slots=True)
class _Question:
    """One call. A factory is first called with `weights`, what it makes with `arguments`."""

    facts: dict[str, Any]
    arguments: tuple[Any, ...]
    weights: tuple[Any, ...] | None = None


#: (dtype, tokens, random numbers) to questions
_Ask = Callable[[torch.dtype, int, torch.Generator], Iterator[_Question]]


def _rms_norm(dtype: torch.dtype, tokens: int, random: torch.Generator) -> Iterator[_Question]:
    for width in (64, 80, 576):
        x, weight = _normal(dtype, random, tokens, width), _normal(dtype, random, width)
        yield _Question({"width": width}, (x, weight, 1e-5))
    heads = _normal(dtype, random, tokens, 4, 64)  # as the norm of queries and keys is called
    yield _Question({"width": 64}, (heads, _normal(dtype, random, 64), 1e-6))


def _add_rms_norm(dtype: torch.dtype, tokens: int, random: torch.Generator) -> Iterator[_Question]:
    for width in (64, 80, 576):
        x, residual = (_normal(dtype, random, tokens, width) for _ in range(2))
        yield _Question({"width": width}, (x, residual, _normal(dtype, random, width), 1e-5))


def _rotary(dtype: torch.dtype, tokens: int, random: torch.Generator) -> Iterator[_Question]:
    for heads, kv_heads, size, rotated in ((8, 2, 64, 64), (7, 1, 64, 64), (4, 4, 80, 32)):
        q = _normal(dtype, random, tokens, heads, size)
        k = _normal(dtype, random, tokens, kv_heads, size)
        angles = torch.rand(tokens, rotated // 2, generator=random) * 100
        facts = {"head_dim": size, "rotary_dim": rotated}
        yield _Question(facts, (q, k, angles.cos(), angles.sin()))


def _multiply(dtype: torch.dtype, tokens: int, random: torch.Generator) -> Iterator[_Question]:
    for width in (64, 80, 1536):
        yield _Question({"width": width}, (_normal(dtype, random, tokens, 2 * width),))


def _embedding(dtype: torch.dtype, tokens: int, random: torch.Generator) -> Iterator[_Question]:
    rows, width = 97, 64
    ids = torch.randint(rows, (tokens,), generator=random)
    weight = _normal(dtype, random, rows, width)
    yield _Question({"rows": rows, "width": width}, (ids, weight))


def _linear(dtype: torch.dtype, tokens: int, random: torch.Generator) -> Iterator[_Question]:
    for inputs, outputs, biased in ((64, 96, False), (80, 33, True), (576, 192, False)):
        weight = _normal(dtype, random, outputs, inputs)
        bias = _normal(dtype, random, outputs) if biased else None
        facts = {"in_features": inputs, "out_features": outputs, "bias": biased}
        yield _Question(facts, (_normal(dtype, random, tokens, inputs),), (weight, bias))


def _mixture(dtype: torch.dtype, tokens: int, random: torch.Generator) -> Iterator[_Question]:
    experts, active, width, inner = 8, 2, 64, 96
    gate_up = _normal(dtype, random, experts, 2 * inner, width) * 0.1
    down = _normal(dtype, random, experts, width, inner) * 0.1
    x = _normal(dtype, random, tokens, width)
    scores = torch.rand(tokens, experts, generator=random)
    share, ids = scores.softmax(-1).topk(active)
    facts = {"experts": experts, "width": width, "expert_width": inner}
    yield _Question(facts, (x, share, ids), (gate_up, down))


QUESTIONS: dict[str, _Ask] = {
    "rms_norm": _rms_norm,
    "add_rms_norm": _add_rms_norm,
    "rotary": _rotary,
    "silu_and_multiply": _multiply,
    "gelu_tanh_and_multiply": _multiply,
    "embedding": _embedding,
    "linear": _linear,
    "mixture_of_experts": _mixture,
}


def operation_is_right(name: str, dtype: str) -> Callable[[Subject], float]:
    def check(subject: Subject) -> float:
        """The largest relative error of any question."""
        table = OpTable()
        ops.fill(table)
        subject.platform.ops(table)
        random = generator(name)
        return max(
            _error(table, name, question, dtype, subject)
            for tokens in TOKENS
            for question in QUESTIONS[name](DTYPES[dtype], tokens, random)
        )

    return check


def names_only_its_own(subject: Subject) -> None:
    """The platform adds operations under its own name and replaces no reference."""
    table, filled = OpTable(), OpTable()
    ops.fill(filled)
    ops.fill(table)
    subject.platform.ops(table)
    for name in filled.names:
        assert table.reference(name) is filled.reference(name), (
            f"the platform registered {name!r} with source 'reference'; use its own name"
        )


def every_operation_is_checked(subject: Subject) -> None:
    """The kit knows each operation of the table."""
    filled = OpTable()
    ops.fill(filled)
    assert set(filled.names) == set(QUESTIONS), f"unchecked: {set(filled.names) ^ set(QUESTIONS)}"


def _error(table: OpTable, name: str, asked: _Question, dtype: str, subject: Subject) -> float:
    device = subject.platform.device
    chosen = table.choose(name, dtype=dtype, device=device, **asked.facts)
    weights = None if asked.weights is None else _on(asked.weights, device)
    function = chosen if weights is None else chosen(*weights)
    found = _as_tuple(function(*_on(asked.arguments, device)))
    reference = table.reference(name)
    exact = reference if asked.weights is None else reference(*_wide(asked.weights))
    expected = _as_tuple(exact(*_wide(asked.arguments)))
    for one in found:
        assert one.dtype == DTYPES[dtype], f"{name} gave {one.dtype} for {dtype}"
    pairs = zip(found, expected, strict=True)
    return max(relative_error(one.cpu(), right) for one, right in pairs)


def _normal(dtype: torch.dtype, random: torch.Generator, *shape: int) -> Tensor:
    """Standard normal numbers that the dtype can represent."""
    return torch.randn(*shape, generator=random).to(dtype)


def _on(values: Sequence[Any], device: str) -> tuple[Any, ...]:
    """Copies on the device: an operation may work in place, or own what it is given."""
    return tuple(one.clone().to(device) if isinstance(one, Tensor) else one for one in values)


def _wide(values: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(
        one.float() if isinstance(one, Tensor) and one.is_floating_point() else one
        for one in values
    )


def _as_tuple(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


CASES = (
    Case(id="ops/names-only-its-own", level="ops", check=names_only_its_own, wide=True),
    Case(id="ops/every-operation-is-checked", level="ops", check=every_operation_is_checked),
    *(
        Case(
            id=f"ops/{name}/{dtype}",
            level="ops",
            check=operation_is_right(name, dtype),
            tolerance=tolerance,
            skip=needs_dtype(dtype),
            wide=True,
        )
        for name in QUESTIONS
        for dtype, tolerance in TOLERANCES.items()
    ),
)
