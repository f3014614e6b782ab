"""The platform's operations against float64, and their place in the table."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from engine.platform import OpTable
from engine_cpu import ops

#: Roundings of the result: half a unit in the last place, and some for sums and intermediate ones.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1.2e-2, torch.float16: 2e-3}
dtypes = pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
#: Few tokens and many take different ways.
tokens = pytest.mark.parametrize("tokens", [1, 3, 600])


def close(found: Tensor, right: Tensor, dtype: torch.dtype) -> bool:
    assert found.dtype == dtype
    error = (found.double() - right).abs().max() / right.abs().max()
    return bool(error < TOLERANCES[dtype])


def normal(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def exact_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    x = x.double()
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight.double()


@dtypes
@tokens
def test_norms_are_right(dtype: torch.dtype, tokens: int) -> None:
    x, residual, weight = (normal(dtype, *s) for s in ((tokens, 576), (tokens, 576), (576,)))
    assert close(ops.rms_norm(x, weight, 1e-5), exact_norm(x, weight, 1e-5), dtype)
    normed, total = ops.add_rms_norm(x, residual, weight, 1e-5)
    assert torch.equal(total, x + residual)
    assert close(normed, exact_norm(total, weight, 1e-5), dtype)


def test_a_row_of_zeros_is_normed_to_zeros() -> None:
    for rows in (1, 1000):
        found = ops.rms_norm(torch.zeros(rows, 576), torch.ones(576), 1e-6)
        assert torch.equal(found, torch.zeros(rows, 576))


@dtypes
@tokens
@pytest.mark.parametrize("rotated", [64, 32])
def test_rotation_is_that_of_complex_numbers(dtype: torch.dtype, tokens: int, rotated: int) -> None:
    q, k = normal(dtype, tokens, 9, 64), normal(dtype, tokens, 3, 64)
    angles = torch.rand(tokens, rotated // 2) * 100
    found = ops.rotary(q, k, angles.cos(), angles.sin())
    for x, one in zip((q, k), found, strict=True):
        first, second = x[..., :rotated].double().chunk(2, dim=-1)
        turned = torch.complex(first, second) * torch.polar(
            torch.ones_like(angles, dtype=torch.float64), angles.double()
        ).unsqueeze(1)
        right = torch.cat([turned.real, turned.imag, x[..., rotated:].double()], dim=-1)
        assert close(one, right, dtype)


@dtypes
@tokens
@pytest.mark.parametrize(
    ("operation", "activation"),
    [
        (ops.silu_and_multiply, functional.silu),
        (ops.gelu_tanh_and_multiply, lambda x: functional.gelu(x, approximate="tanh")),
    ],
)
def test_gated_activations_are_right_and_keep_their_argument(
    dtype: torch.dtype,
    tokens: int,
    operation: Callable[[Tensor], Tensor],
    activation: Callable[[Tensor], Tensor],
) -> None:
    gate_up = normal(dtype, tokens, 2 * 96)
    before = gate_up.clone()
    gate, up = gate_up.double().chunk(2, dim=-1)
    assert close(operation(gate_up), activation(gate) * up, dtype)
    assert torch.equal(gate_up, before)


def test_they_are_preferred_to_the_reference() -> None:
    table = OpTable()
    table.register("rms_norm", source="reference")(lambda x, weight, eps: x)
    ops.register(table)
    assert table.choose("rms_norm", dtype="float32", device="cpu:0", width=8) is ops.rms_norm
    assert {name for name in table.names if Path(ops.__file__).read_text().count(name)} == set(
        table.names
    )
