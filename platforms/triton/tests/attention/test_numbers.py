import pytest
import torch
import triton
import triton.language as tl
from paged_steps import FP8
from torch import Tensor

from engine_triton.attention.numbers import decoded, encoded, operand

LARGEST = {"e4m3": 448.0, "e4m3fnuz": 240.0, "e5m2": 57344.0}


@triton.jit
def encode_kernel(x, out, FORMAT: tl.constexpr, COUNT: tl.constexpr):
    index = tl.arange(0, COUNT)
    tl.store(out + index, encoded(tl.load(x + index), FORMAT, out.dtype.element_ty))


@triton.jit
def decode_kernel(x, out, FORMAT: tl.constexpr, COUNT: tl.constexpr):
    index = tl.arange(0, COUNT)
    tl.store(out + index, decoded(tl.load(x + index), FORMAT, tl.float32))


@triton.jit
def operand_kernel(x, out, COUNT: tl.constexpr):
    index = tl.arange(0, COUNT)
    tl.store(out + index, operand(tl.load(x + index), tl.float16))


def numbers(largest: float) -> Tensor:
    """4096 float32: of all sizes, halfway between two numbers of a format, at and over its end."""
    random = torch.Generator().manual_seed(0)
    made = torch.randn(4096, generator=random) * torch.logspace(-9, 6, 4096, base=10)
    kinds = torch.arange(64.0)[:, None] + torch.tensor([0.0, 0.25, 0.5, 0.75])
    ties = torch.cat([kinds.flatten() * 2.0**power for power in (-18, -12, -7, 0, 8)])
    made[: len(ties)] = ties
    edge = torch.tensor([0.0, float("inf"), largest, largest * 1.03, largest * 2, 3e38])
    made[-6:] = edge
    made[-12:-6] = -edge
    return made


@pytest.mark.parametrize("name", FP8)
def test_fp8_is_rounded_to_even_and_saturates(name: str) -> None:
    x = numbers(LARGEST[name])
    found = torch.empty(4096, dtype=torch.uint8)
    encode_kernel[(1,)](x, found, FORMAT=name, COUNT=4096)
    kept = x.clamp(-LARGEST[name], LARGEST[name]).to(FP8[name])
    assert torch.equal(found.view(FP8[name]).float(), kept.float())


@pytest.mark.parametrize("name", FP8)
def test_nan_stays_nan_in_fp8(name: str) -> None:
    found = torch.empty(16, dtype=torch.uint8)
    encode_kernel[(1,)](torch.full((16,), float("nan")), found, FORMAT=name, COUNT=16)
    assert found.view(FP8[name]).float().isnan().all()


def test_float16_saturates() -> None:
    x = torch.tensor([1e6, -1e6, 65504.0, float("inf"), float("-inf"), 1.0, -2.5, float("nan")])
    found = torch.empty(8, dtype=torch.float16)
    encode_kernel[(1,)](x, found, FORMAT="plain", COUNT=8)
    assert found[:7].tolist() == [65504, -65504, 65504, 65504, -65504, 1, -2.5]
    assert found[7].isnan()


def test_queries_saturate_where_products_are_made_in_float16() -> None:
    x = torch.tensor([1e6, -1e6, 1.5, -3.0]).bfloat16()
    found = torch.empty(4, dtype=torch.float16)
    operand_kernel[(1,)](x, found, COUNT=4)
    assert found.tolist() == [65504, -65504, 1.5, -3.0]


@pytest.mark.parametrize(("name", "factor"), [("e4m3", 256.0), ("e5m2", 1.0)])
def test_every_byte_is_decoded_by_its_bits(name: str, factor: float) -> None:
    codes = torch.arange(256).to(torch.uint8)
    found = torch.empty(256)
    decode_kernel[(1,)](codes, found, FORMAT=name, COUNT=256)
    right = codes.view(FP8[name]).float()
    known = ~right.isnan()
    assert torch.equal((found * factor)[known], right[known])
