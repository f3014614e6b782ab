"""Every operation against the core's reference on float64 numbers: odd sizes, rows that lie apart,
outputs that held NaN before."""

import pytest
import torch
from torch.nn import functional

from engine import ops
from engine.errors import UnsupportedError
from engine.ops import reference
from engine.platform import OpTable
from engine_triton import pointwise
from engine_triton.architecture import Architecture
from engine_triton.pointwise.norm import MAX_WIDTH

DTYPES = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
EPS = 1e-5


@pytest.fixture(scope="module")
def table(architecture: Architecture) -> OpTable:
    found = OpTable()
    ops.fill(found)
    pointwise.register(found, architecture, source="stand-in")
    return found


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request) -> torch.dtype:
    return request.param


@pytest.fixture(autouse=True)
def poisoned(monkeypatch) -> None:
    """New memory holds NaN: what a kernel leaves out shows."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(torch.nan))


def choose(table: OpTable, name: str, dtype: torch.dtype = torch.float32, **facts):
    kernel = table.choose(name, dtype=str(dtype).removeprefix("torch."), device="cpu", **facts)
    assert table.chosen[name, "stand-in"]
    return kernel


def normal(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    random = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=random).to(dtype)


def check(found: torch.Tensor, exact: torch.Tensor, dtype: torch.dtype) -> None:
    assert found.dtype == dtype
    assert found.shape == exact.shape
    torch.testing.assert_close(found.double(), exact, rtol=DTYPES[dtype], atol=DTYPES[dtype])


def exact_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    x = x.double()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS) * weight.double()


@pytest.mark.parametrize("width", [1, 64, 80, 577, 3072, MAX_WIDTH])
@pytest.mark.parametrize("tokens", [1, 3])
def test_a_norm_equals_float64(table, dtype, tokens, width) -> None:
    x, weight = normal(tokens, width, dtype=dtype), normal(width, dtype=dtype)
    check(
        choose(table, "rms_norm", dtype, width=width)(x, weight, EPS), exact_norm(x, weight), dtype
    )


def test_heads_of_a_packed_projection_are_normed_where_they_lie(table, dtype) -> None:
    packed = normal(5, 9 * 24, dtype=dtype)
    heads, weight = packed[:, 48 : 48 + 7 * 24].view(5, 7, 24), normal(24, dtype=dtype)
    found = choose(table, "rms_norm", dtype, width=24)(heads, weight, EPS)
    check(found, exact_norm(heads, weight), dtype)


def test_a_norm_takes_any_number_of_dimensions_and_columns(table) -> None:
    x, weight = normal(2, 3, 4, 40, dtype=torch.float32), normal(40, dtype=torch.float32)
    norm = choose(table, "rms_norm", width=40)
    check(norm(x, weight, EPS), exact_norm(x, weight), torch.float32)
    turned = normal(40, 6, dtype=torch.float32).T
    check(norm(turned, weight, EPS), exact_norm(turned, weight), torch.float32)
    check(norm(x[0, 0, 0], weight, EPS), exact_norm(x[0, 0, 0], weight), torch.float32)


def test_rows_wider_than_a_program_are_left_to_the_reference(table) -> None:
    chosen = table.choose("rms_norm", dtype="float32", device="cpu", width=MAX_WIDTH + 1)
    assert chosen is reference.rms_norm
    empty = OpTable()
    pointwise.register(empty, Architecture.current(), source="stand-in")
    with pytest.raises(UnsupportedError, match="16385 features has more than 16384"):
        empty.choose("rms_norm", dtype="float32", device="cpu", width=MAX_WIDTH + 1)


@pytest.mark.parametrize("width", [64, 80, 577])
def test_an_addition_is_rounded_before_its_norm(table, dtype, width) -> None:
    wide = normal(3, 2 * width, dtype=dtype)
    x, residual, weight = wide[:, :width], wide[:, width:], normal(width, dtype=dtype)
    normed, total = choose(table, "add_rms_norm", dtype, width=width)(x, residual, weight, EPS)
    assert torch.equal(total, x + residual)
    check(normed, exact_norm(x + residual, weight), dtype)


@pytest.mark.parametrize("operation", ["silu_and_multiply", "gelu_tanh_and_multiply"])
@pytest.mark.parametrize("width", [1, 80, 513, 1536])
def test_a_gate_times_its_projection_equals_float64(table, dtype, operation, width) -> None:
    x = 3 * normal(3, 2 * width + 5, dtype=dtype)[:, : 2 * width]
    gate, up = x.double().chunk(2, dim=-1)
    if operation == "silu_and_multiply":
        exact = functional.silu(gate) * up
    else:
        exact = functional.gelu(gate, approximate="tanh") * up
    check(choose(table, operation, dtype, width=width)(x), exact, dtype)


@pytest.mark.parametrize("rotated", [2, 64, 96])
def test_angles_are_those_of_float32_products(table, rotated) -> None:
    positions = torch.tensor([0, 1, 17, 4095, 131071])
    frequencies = 10000.0 ** -(torch.arange(rotated // 2) / (rotated // 2))
    kernel = choose(table, "rotary_angles", head_dim=96, rotary_dim=rotated)
    cos, sin = kernel(positions, frequencies, 0.9)
    angles = (positions.float()[:, None] * frequencies).double()
    check(cos, 0.9 * angles.cos(), torch.float32)
    check(sin, 0.9 * angles.sin(), torch.float32)


@pytest.mark.parametrize("size", [(8, 2, 64, 64), (7, 1, 80, 32), (3, 3, 96, 96), (4, 1, 16, 2)])
def test_heads_of_a_packed_projection_are_rotated(table, dtype, size) -> None:
    heads, kv_heads, width, rotated = size
    packed = normal(3, (heads + 2 * kv_heads) * width, dtype=dtype)
    q = packed[:, : heads * width].view(3, heads, width)
    k = packed[:, heads * width : (heads + kv_heads) * width].view(3, kv_heads, width)
    angles = torch.rand(3, rotated // 2) * 100
    kernel = choose(table, "rotary", dtype, head_dim=width, rotary_dim=rotated)
    for found, x in zip(kernel(q, k, angles.cos(), angles.sin()), (q, k), strict=True):
        check(found, rotated_64(x, angles), dtype)


def rotated_64(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """As complex numbers: a pair of dimensions is turned by its angle."""
    half = angles.shape[1]
    pairs = torch.complex(x[..., :half].double(), x[..., half : 2 * half].double())
    turned = pairs * torch.polar(torch.ones(()).double(), angles.double())[:, None]
    return torch.cat((turned.real, turned.imag, x[..., 2 * half :].double()), dim=-1)


@pytest.mark.parametrize("name", ["rms_norm", "silu_and_multiply"])
def test_no_tokens_give_no_rows(table, name) -> None:
    x = torch.ones(0, 64)
    arguments = (x, torch.ones(64), EPS) if name == "rms_norm" else (x,)
    assert choose(table, name, width=64)(*arguments).shape[0] == 0
