"""The interpreter rounds and computes as a device does: against torch's own conversions."""

import subprocess
import sys

import pytest
import torch
import triton
import triton.language as tl

from engine_triton import interpreter

FP8 = (torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2)


@triton.jit
def convert(x_ptr, out_ptr, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(out_ptr + at, tl.load(x_ptr + at).to(out_ptr.dtype.element_ty))


@triton.jit
def compute(x_ptr, y_ptr, out_ptr, larger_ptr, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    x, y = tl.load(x_ptr + at), tl.load(y_ptr + at)
    tl.store(out_ptr + at, x * y + x)
    tl.store(larger_ptr + at, x > y)


@triton.jit
def multiply(x_ptr, y_ptr, out_ptr, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    tl.store(out_ptr + at, tl.dot(tl.load(x_ptr + at), tl.load(y_ptr + at)))


@triton.jit
def reduce(x_ptr, out_ptr, SIZE: tl.constexpr):
    x = tl.load(x_ptr + tl.arange(0, SIZE))
    tl.store(out_ptr, tl.max(x, axis=0))
    tl.store(out_ptr + 1, tl.min(x, axis=0))


@triton.jit
def reduce_narrow(x_ptr, out_ptr, SIZE: tl.constexpr):
    tl.store(out_ptr, tl.sum(tl.load(x_ptr + tl.arange(0, SIZE)), axis=0))


def numbers(size: int = 512) -> torch.Tensor:
    """Of many magnitudes, with halves between two bfloat16 numbers among them."""
    random = torch.Generator().manual_seed(size)
    x = torch.randn(size, generator=random) * 10.0 ** torch.arange(-6, 2).repeat(size // 8)
    x[: size // 4] = (x[: size // 4].bfloat16().view(torch.int16).int() << 16 | 0x8000).view(
        torch.float32
    )
    return x


def converted(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    out = torch.zeros(len(x), dtype=torch.float32).to(dtype)
    convert[(1,)](x, out, SIZE=len(x))
    return out


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, *FP8], ids=str)
def test_numbers_are_rounded_to_the_nearest_and_even_ones(dtype) -> None:
    x = numbers()
    if dtype in FP8:
        x = x.clamp(-100, 100)
    assert torch.equal(converted(x, dtype).float(), x.to(dtype).float())


@pytest.mark.parametrize("dtype", FP8, ids=str)
def test_every_fp8_number_is_read_as_it_is(dtype) -> None:
    every = torch.arange(256, dtype=torch.uint8).view(dtype)
    for wide in (torch.float32, torch.bfloat16, torch.float16):
        found = converted(every, wide).float()
        assert torch.equal(found.nan_to_num(), every.to(wide).float().nan_to_num())
        assert torch.equal(found.isnan(), every.float().isnan())


def test_infinities_and_nans_stay_what_they_are_in_bfloat16() -> None:
    x = torch.tensor([torch.inf, -torch.inf, torch.nan, -0.0] * 4)
    found = converted(x, torch.bfloat16)
    assert torch.equal(found.isnan(), x.isnan())
    assert found[[0, 1, 3]].tolist() == [torch.inf, -torch.inf, 0.0]
    assert found[3].signbit()


def test_bfloat16_is_computed_as_numbers() -> None:
    x, y = numbers().bfloat16(), numbers().flip(0).bfloat16()
    out, larger = torch.empty_like(x), torch.empty(len(x), dtype=torch.bool)
    compute[(1,)](x, y, out, larger, SIZE=len(x))
    assert torch.equal(out, x * y + x)
    assert torch.equal(larger, x > y)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.float16], ids=str)
def test_products_are_summed_in_float32(dtype) -> None:
    x, y = (numbers(1024).clamp(-9, 9).view(32, 32).to(dtype) for _ in range(2))
    out = torch.empty(32, 32)
    multiply[(1,)](x, y, out, SIZE=32)
    torch.testing.assert_close(out.double(), x.double() @ y.double(), rtol=1e-5, atol=1e-5)


def test_reductions_pass_over_nans_without_a_warning() -> None:
    out = torch.empty(2)
    reduce[(1,)](torch.tensor([torch.nan, 3.0, -1.0, torch.nan]), out, SIZE=4)
    assert out.tolist() == [3.0, -1.0]
    reduce[(1,)](torch.full((4,), torch.nan), out, SIZE=4)
    assert out.isnan().all()


def test_a_sum_of_bfloat16_is_refused_as_it_would_lose_digits() -> None:
    with pytest.raises(Exception, match="reduce in float32"):
        reduce_narrow[(1,)](torch.ones(8).bfloat16(), torch.empty(1).bfloat16(), SIZE=8)


def test_mending_twice_changes_nothing() -> None:
    interpreter.mend()
    test_bfloat16_is_computed_as_numbers()


def test_it_cannot_be_switched_on_once_triton_compiles() -> None:
    code = "import triton; from engine_triton import interpreter; interpreter.switch_on()"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PATH": ""}
    )
    assert "set TRITON_INTERPRET=1 before Python starts" in done.stderr


@triton.jit
def square(x_ptr, out_ptr):
    x = tl.load(x_ptr)
    tl.store(out_ptr, x * x)


@triton.jit
def shapes(out_ptr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    rows, columns = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    both = rows[:, None] * COLUMNS + columns[None, :]
    turned = tl.trans(both)
    tl.static_assert(both.shape[0] == ROWS)
    tl.static_assert(turned.shape[0] == COLUMNS)
    tl.static_assert(both.numel == ROWS * COLUMNS)
    tl.static_assert(both.to(tl.float32).dtype == tl.float32)
    tl.static_assert(both.dtype == tl.int32)
    tl.store(out_ptr + turned, turned.to(tl.float32))


def test_types_that_are_made_once_are_told_apart_by_shape_and_number():
    for rows, columns in ((4, 8), (8, 4), (4, 4), (4, 8)):
        out = torch.full((rows * columns,), -1.0)
        shapes[(1,)](out, ROWS=rows, COLUMNS=columns)
        assert out.tolist() == list(range(rows * columns))


def test_after_a_launch_the_language_is_the_compiler_s_again():
    before = {name: vars(tl.tensor)[name] for name in ("__add__", "to", "__mul__")}
    where, arange = tl.where, tl.arange
    square[(1,)](torch.ones(1), torch.ones(1))
    assert (tl.where, tl.arange) == (where, arange)
    assert {name: vars(tl.tensor)[name] for name in before} == before
