"""Every named operation as the platform has it, against the core's reference in float32.

Where the platform brings nothing better the reference itself is run on the device: that too must
be right there.

T tokens, W width, H query heads, K key/value heads, D head dim, R rotated part of D.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine import ops
from engine.platform import OpTable
from engine.testing.checks import quantized
from engine.testing.checks.case import Case, needs_dtype
from engine.testing.checks.numbers import DTYPES, generator, relative_error
from engine.testing.checks.subject import Subject

#: Largest difference over the largest value of the right answer. Results are rounded to the dtype,
#: and some references round in between.
TOLERANCES = {"float32": 2e-5, "bfloat16": 2e-2, "float16": 3e-3}

#: The same where nothing is rounded after the sums.
UNROUNDED = 2e-4

TOKENS = (1, 2, 7, 33)


@dataclass(frozen=True, slots=True)
class _Question:
    """One call. A factory is first called with `weights`, what it makes with `arguments`; where it
    makes several functions, each takes one argument."""

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


def _rotary_angles(_: torch.dtype, tokens: int, random: torch.Generator) -> Iterator[_Question]:
    for size, rotated in ((64, 64), (80, 32)):
        positions = torch.randint(2000, (tokens,), generator=random)
        frequencies = 10000.0 ** -(torch.arange(rotated // 2) / (rotated // 2))
        facts = {"head_dim": size, "rotary_dim": rotated}
        yield _Question(facts, (positions, frequencies, 0.9))


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


def _tied_embedding(
    dtype: torch.dtype, tokens: int, random: torch.Generator
) -> Iterator[_Question]:
    for rows, width in ((97, 64), (64, 80)):
        ids = torch.randint(rows, (tokens,), generator=random)
        x = _normal(dtype, random, tokens, width)
        weight = _normal(dtype, random, rows, width)
        yield _Question({"rows": rows, "width": width}, (ids, x), (weight,))


def _mixture(dtype: torch.dtype, tokens: int, random: torch.Generator) -> Iterator[_Question]:
    experts, active, width, inner = 8, 2, 64, 96
    gate_up = _normal(dtype, random, experts, 2 * inner, width) * 0.1
    down = _normal(dtype, random, experts, width, inner) * 0.1
    x = _normal(dtype, random, tokens, width)
    scores = torch.rand(tokens, experts, generator=random)
    share, ids = scores.softmax(-1).topk(active)
    facts = {"experts": experts, "width": width, "expert_width": inner}
    yield _Question(facts, (x, share, ids), (gate_up, down))


def _argmax(_: torch.dtype, tokens: int, random: torch.Generator) -> Iterator[_Question]:
    for size in (97, 1200, 40000):
        scores = _normal(torch.float32, random, tokens, size)
        yield _Question({"vocab_size": size}, (scores,))
        yield _Question({"vocab_size": size}, (scores.round(),))  # the first of equals


def _sample(_: torch.dtype, tokens: int, random: torch.Generator) -> Iterator[_Question]:
    """Every filter alone, and all together, on rows of which some are left out."""
    for size in (97, 1200):
        scores = 3 * _normal(torch.float32, random, 2 * tokens, size)
        places = np.arange(tokens) * 2
        for temperature, top_k, top_p, min_p in (
            (1.0, 0, 1.0, 0.0),
            (0.5, 9, 1.0, 0.0),
            (1.5, 0, 0.8, 0.0),
            (1.0, 0, 1.0, 0.05),
            (0.9, 40, 0.9, 0.01),
        ):
            yield _Question(
                {"vocab_size": size},
                (
                    scores,
                    scores.amax(-1),
                    places,
                    np.full(tokens, temperature, dtype=np.float32),
                    np.full(tokens, top_k, dtype=np.int64),
                    np.full(tokens, top_p, dtype=np.float32),
                    np.full(tokens, min_p, dtype=np.float32),
                    torch.rand(tokens, 2, generator=random).numpy(),
                ),
            )


def _penalize(_: torch.dtype, tokens: int, random: torch.Generator) -> Iterator[_Question]:
    """Each penalty alone, none, and all together, on rows of which some are left out: by tokens
    that occur more than once, in prompts alone, in outputs alone and in both."""
    for size in (97, 1200):
        scores = 3 * _normal(torch.float32, random, 2 * tokens, size)
        history = torch.randint(min(size, 40), (tokens + 3, 60), generator=random)
        lengths = torch.randint(1, 60, (tokens,), generator=random).numpy()
        rows = torch.randperm(tokens + 3, generator=random)[:tokens].numpy()
        firsts = np.minimum(torch.randint(60, (tokens,), generator=random).numpy(), lengths)
        for penalties in (
            (1.0, 0.0, 0.0),
            (1.7, 0.0, 0.0),
            (1.0, 0.6, 0.0),
            (1.0, 0.0, -1.5),
            (0.4, -0.3, 0.9),
        ):
            numbers = [np.full(tokens, each, dtype=np.float32) for each in penalties]
            places = np.arange(tokens) * 2
            arguments = (scores.clone(), history, places, rows, lengths, firsts, *numbers)
            yield _Question({"vocab_size": size}, arguments)


QUESTIONS: dict[str, _Ask] = {
    "rms_norm": _rms_norm,
    "add_rms_norm": _add_rms_norm,
    "rotary_angles": _rotary_angles,
    "rotary": _rotary,
    "silu_and_multiply": _multiply,
    "gelu_tanh_and_multiply": _multiply,
    "embedding": _embedding,
    "linear": _linear,
    "tied_embedding": _tied_embedding,
    "mixture_of_experts": _mixture,
    "argmax": _argmax,
    "sample": _sample,
    "penalize": _penalize,
}
#: Factories of linear layers; a linear layer is the last that they make.
LINEAR = {"linear", "tied_embedding"}
#: Asked in float32 alone, whatever the model's dtype.
FLOAT32 = {"argmax", "penalize", "rotary_angles", "sample"}


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
    found = _call(function, _on(asked.arguments, device))
    reference = table.reference(name)
    exact = reference if asked.weights is None else reference(*_wide(asked.weights))
    expected = _call(exact, _wide(asked.arguments))
    for one in found:
        right = DTYPES[dtype] if one.is_floating_point() else torch.int64
        assert one.dtype == right, f"{name} gave {one.dtype} for {dtype}"
    errors = [relative_error(one.cpu(), right) for one, right in zip(found, expected, strict=True)]
    if name in LINEAR:
        _check_float32(name, function, _on(asked.arguments, device)[-1], expected[-1])
    return max(errors)


def _check_float32(name: str, made: Any, x: Tensor, expected: Tensor) -> None:
    """What a factory offers beside, for logits: no rounding of the result shows in the error."""
    in_float32 = getattr(made[-1] if isinstance(made, tuple) else made, "in_float32", None)
    if in_float32 is None:
        return
    found = in_float32(x)
    assert found.dtype == torch.float32, f"in_float32 of {name} gave {found.dtype}"
    error = relative_error(found.cpu(), expected)
    assert error <= UNROUNDED, f"in_float32 of {name} is off by {error:.2g}, over {UNROUNDED}"


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


def _call(made: Any, arguments: Sequence[Any]) -> tuple[Tensor, ...]:
    if isinstance(made, tuple):
        return tuple(one(argument) for one, argument in zip(made, arguments, strict=True))
    result = made(*arguments)
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
        if name not in FLOAT32 or dtype == "float32"
    ),
    *quantized.CASES,
)
