"""Norms, rotary positions, gated activations and embedding against float64.

Every tensor lies between guard zones, and results are poisoned before they are computed. Inputs are
column slices of wider matrices, as the model hands them over.
"""

import ctypes
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
#: Half a unit in the last place of the result, and some float32 roundings on the way.
TOLERANCES = {torch.float32: 4e-6, torch.bfloat16: 4.1e-3, torch.float16: 5.2e-4}
GUARD = 64  # elements

dtypes = pytest.mark.parametrize("dtype", list(DTYPES), ids=str)
widths = pytest.mark.parametrize("width", [1, 15, 16, 17, 31, 33, 64, 255, 257, 576])
token_counts = pytest.mark.parametrize("tokens", [1, 2, 13, 100])


@pytest.fixture(autouse=True, params=[1, 2, 3], ids=lambda count: f"{count} threads")
def threads(request: pytest.FixtureRequest, lib: ctypes.CDLL) -> Iterator[None]:
    lib.ek_set_threads(request.param)
    yield
    lib.ek_set_threads(0)


class Output:
    """A tensor of NaN with more NaN before and behind it."""

    def __init__(self, dtype: torch.dtype, *shape: int) -> None:
        size = int(torch.Size(shape).numel())
        self._all = torch.full((size + 2 * GUARD,), torch.nan, dtype=dtype)
        self.tensor = self._all[GUARD : GUARD + size].view(shape)
        self.address = self.tensor.data_ptr()

    def checked(self) -> Tensor:
        assert self._all[:GUARD].isnan().all(), "written before the result"
        assert self._all[-GUARD:].isnan().all(), "written behind the result"
        return self.tensor


def sliced(dtype: torch.dtype, *shape: int, scale: float = 1.0) -> Tensor:
    """Random numbers; each row of the first dimension is followed by NaN."""
    generator = torch.Generator().manual_seed(sum(shape))
    values = torch.randn(*shape, generator=generator).mul_(scale).to(dtype)
    row = int(torch.Size(shape[1:]).numel())
    wide = torch.full((shape[0], row + 5), torch.nan, dtype=dtype)
    wide[:, 2 : 2 + row] = values.view(shape[0], row)
    strides = (row + 5, *values.stride()[1:])
    return wide.as_strided(shape, strides, storage_offset=2)


def close(found: Tensor, right: Tensor, floor: float = 1e-6) -> None:
    """Each number is the exact one but for a rounding; near zero, absolute errors count."""
    assert not found.isnan().any()
    error = (found.double() - right).abs()
    allowed = right.abs() * TOLERANCES[found.dtype] + floor
    assert (error <= allowed).all(), f"off by {(error / allowed).max():.2f} of what is allowed"


def exact_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.double()
    return wide / (wide.square().mean(-1, keepdim=True) + eps).sqrt() * weight.double()


@dtypes
@widths
@token_counts
def test_rms_norm_is_exact_but_for_a_rounding(
    lib: ctypes.CDLL, dtype: torch.dtype, width: int, tokens: int
) -> None:
    x, y = sliced(dtype, tokens, width), Output(dtype, tokens, width)
    for weight in (sliced(dtype, 1, width)[0], sliced(torch.float32, 1, width)[0]):
        kinds = (DTYPES[dtype], DTYPES[weight.dtype])
        where = (x.data_ptr(), x.stride(0), 0, 1, weight.data_ptr(), y.address)
        assert lib.ek_rms_norm(*where, width, 1e-5, *kinds, tokens) == 0
        close(y.checked(), exact_norm(x, weight, 1e-5))


@dtypes
@pytest.mark.parametrize(("heads", "width"), [(1, 16), (3, 64), (9, 17)])
@token_counts
def test_rms_norm_of_the_heads_in_a_wider_matrix(
    lib: ctypes.CDLL, dtype: torch.dtype, heads: int, width: int, tokens: int
) -> None:
    x, weight = sliced(dtype, tokens, heads, width), sliced(dtype, 1, width)[0]
    y = Output(dtype, tokens, heads, width)
    where = (x.data_ptr(), x.stride(0), x.stride(1), heads, weight.data_ptr(), y.address)
    assert lib.ek_rms_norm(*where, width, 1e-6, DTYPES[dtype], DTYPES[dtype], tokens) == 0
    close(y.checked(), exact_norm(x, weight, 1e-6))


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e15])
def test_rows_of_tiny_and_huge_numbers_are_normed(lib: ctypes.CDLL, scale: float) -> None:
    x, weight = sliced(torch.float32, 2, 33, scale=scale), torch.ones(33)
    y = Output(torch.float32, 2, 33)
    where = (x.data_ptr(), x.stride(0), 0, 1, weight.data_ptr(), y.address)
    assert lib.ek_rms_norm(*where, 33, 1e-6, 0, 0, 2) == 0
    close(y.checked(), exact_norm(x, weight, 1e-6), floor=1e-30)


@dtypes
@widths
@token_counts
def test_add_rms_norm_norms_the_rounded_sum(
    lib: ctypes.CDLL, dtype: torch.dtype, width: int, tokens: int
) -> None:
    x, residual = sliced(dtype, tokens, width), sliced(dtype, tokens, width).flip(0).contiguous()
    weight = sliced(dtype, 1, width)[0]
    y, total = Output(dtype, tokens, width), Output(dtype, tokens, width)
    inputs = (x.data_ptr(), x.stride(0), residual.data_ptr(), width, weight.data_ptr())
    kinds = (DTYPES[dtype], DTYPES[dtype])
    assert lib.ek_add_rms_norm(*inputs, y.address, total.address, width, 1e-5, *kinds, tokens) == 0
    assert torch.equal(total.checked(), x + residual)
    close(y.checked(), exact_norm(total.tensor, weight, 1e-5))


@pytest.mark.parametrize("half", [1, 15, 16, 17, 32, 64])
@token_counts
@pytest.mark.parametrize("scale", [1.0, 0.625])
def test_rotary_angles_are_right_to_the_last_place(
    lib: ctypes.CDLL, half: int, tokens: int, scale: float
) -> None:
    generator = torch.Generator().manual_seed(tokens)
    positions = torch.randint(1_000_000, (tokens,), generator=generator)
    positions[0], positions[-1] = (0, 1) if tokens == 1 else (999_999, 1_048_575)
    frequencies = (1e4 ** -torch.linspace(0, 1, half, dtype=torch.float64)).float()
    cos, sin = Output(torch.float32, tokens, half), Output(torch.float32, tokens, half)
    inputs = (positions.data_ptr(), frequencies.data_ptr(), half, scale)
    assert lib.ek_rotary_angles(*inputs, cos.address, sin.address, tokens) == 0
    angles = (positions.float().unsqueeze(1) * frequencies).double()  # in float, as models do
    factor = float(torch.tensor(scale, dtype=torch.float32))
    assert ((cos.checked().double() - angles.cos() * factor).abs() <= 9e-8).all()
    assert ((sin.checked().double() - angles.sin() * factor).abs() <= 9e-8).all()


@dtypes
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "half"),
    [
        (9, 3, 64, 32),
        (1, 1, 2, 1),
        (4, 1, 33, 15),
        (2, 2, 80, 16),
        (3, 1, 128, 17),
        (2, 1, 256, 128),
    ],
)
@token_counts
def test_rotation_is_that_of_complex_numbers(
    lib: ctypes.CDLL,
    dtype: torch.dtype,
    heads: int,
    kv_heads: int,
    head_dim: int,
    half: int,
    tokens: int,
) -> None:
    qkv = sliced(dtype, tokens, heads + 2 * kv_heads, head_dim)
    q, k, _ = qkv.split((heads, kv_heads, kv_heads), dim=1)
    angles = torch.rand(tokens, half, generator=torch.Generator().manual_seed(half)) * 100
    cos, sin = angles.cos(), angles.sin()
    results = Output(dtype, *q.shape), Output(dtype, *k.shape)
    arguments = []
    for x, y in zip((q, k), results, strict=True):
        arguments += [x.data_ptr(), x.stride(0), x.stride(1), x.shape[1], y.address]
    arguments += [cos.data_ptr(), sin.data_ptr(), head_dim, half, DTYPES[dtype], tokens]
    assert lib.ek_rotary(*arguments) == 0
    turn = torch.complex(cos.double(), sin.double()).unsqueeze(1)
    for x, y in zip((q, k), results, strict=True):
        first, second = x[..., :half].double(), x[..., half : 2 * half].double()
        turned = torch.complex(first, second) * turn
        rest = x[..., 2 * half :].double()
        close(y.checked(), torch.cat([turned.real, turned.imag, rest], dim=-1))


def exact_silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def exact_gelu_tanh(x: Tensor) -> Tensor:
    # tanh would lose the small values of negative x.
    return x * torch.sigmoid(2 * (2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))


ACTIVATIONS = {
    "ek_silu_and_multiply": exact_silu,
    "ek_gelu_tanh_and_multiply": exact_gelu_tanh,
}


@dtypes
@pytest.mark.parametrize("width", [1, 15, 17, 64, 255, 512, 513, 1536])
@token_counts
@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_gated_activations_are_exact_but_for_a_rounding(
    lib: ctypes.CDLL, dtype: torch.dtype, width: int, tokens: int, name: str
) -> None:
    x, y = sliced(dtype, tokens, 2 * width, scale=3.0), Output(dtype, tokens, width)
    function = getattr(lib, name)
    assert function(x.data_ptr(), x.stride(0), y.address, width, DTYPES[dtype], tokens) == 0
    gate, up = x.double().chunk(2, dim=-1)
    close(y.checked(), ACTIVATIONS[name](gate) * up)


@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_activations_of_extreme_numbers(lib: ctypes.CDLL, name: str) -> None:
    most = torch.finfo(torch.float32).max
    gate = torch.tensor([0.0, 87.0, 89.0, 1e4, most, -20.0, -87.0, -89.0, -1e4, -most, torch.inf])
    x = torch.cat((gate, torch.ones_like(gate)))
    y = Output(torch.float32, 1, len(gate))
    assert getattr(lib, name)(x.data_ptr(), len(x), y.address, len(gate), 0, 1) == 0
    found, right = y.checked()[0], ACTIVATIONS[name](gate.double())
    assert torch.equal(found[[3, 4, 10]], gate[[3, 4, 10]])
    close(found[:-1], right[:-1], floor=1e-30)


@pytest.mark.parametrize("name", list(ACTIVATIONS))
@dtypes
def test_nan_stays_nan(lib: ctypes.CDLL, name: str, dtype: torch.dtype) -> None:
    x = torch.ones(1, 2 * 40, dtype=dtype)
    x[0, [3, 38, 40 + 7]] = torch.nan
    y = torch.zeros(1, 40, dtype=dtype)
    assert getattr(lib, name)(x.data_ptr(), 80, y.data_ptr(), 40, DTYPES[dtype], 1) == 0
    assert y.isnan().nonzero()[:, 1].tolist() == [3, 7, 38]


@dtypes
@widths
@token_counts
def test_embedding_copies_rows(
    lib: ctypes.CDLL, dtype: torch.dtype, width: int, tokens: int
) -> None:
    weight, y = sliced(dtype, 50, width), Output(dtype, tokens, width)
    ids = torch.randint(50, (tokens,), generator=torch.Generator().manual_seed(tokens))
    ids[0] = 49
    where = (ids.data_ptr(), weight.data_ptr(), weight.stride(0), 50, y.address)
    assert lib.ek_embedding(*where, width, DTYPES[dtype], tokens) == 0
    assert torch.equal(y.checked(), weight[ids])


def test_an_id_that_is_no_row_gives_zeros(lib: ctypes.CDLL) -> None:
    weight, y = torch.ones(4, 8), Output(torch.float32, 4, 8)
    ids = torch.tensor([4, -1, 3, 2**62])
    where = (ids.data_ptr(), weight.data_ptr(), 8, 4, y.address)
    assert lib.ek_embedding(*where, 8, 0, 4) == 0
    assert y.checked().sum(1).tolist() == [0, 0, 8, 0]


def test_a_tape_serves_every_number_of_tokens(lib: ctypes.CDLL) -> None:
    capacity, width = 40, 96
    x, weight = sliced(torch.float32, capacity, 2 * width), sliced(torch.float32, 1, width)[0]
    gated, y = Output(torch.float32, capacity, width), Output(torch.float32, capacity, width)
    tape = lib.ek_tape_new(capacity)
    lib.ek_tape_begin(tape)
    try:
        arguments = (x.data_ptr(), x.stride(0), gated.address, width, 0)
        assert lib.ek_silu_and_multiply(*arguments, 7) == -1
        assert lib.ek_silu_and_multiply(*arguments, capacity) == 0
        where = (gated.address, width, 0, 1, weight.data_ptr(), y.address)
        assert lib.ek_rms_norm(*where, width, 1e-5, 0, 0, capacity) == 0
    finally:
        lib.ek_tape_end()
    assert y.checked().isnan().all()
    for tokens in (1, 12, capacity):
        lib.ek_tape_run(tape, tokens)
        gate, up = x[:tokens].double().chunk(2, dim=-1)
        right = exact_norm(exact_silu(gate) * up, weight, 1e-5)
        assert (y.checked()[:tokens].double() - right).abs().max() < 1e-5
        assert y.tensor[tokens:].isnan().all()
    lib.ek_tape_free(tape)
