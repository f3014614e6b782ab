"""Experts against the core's reference in float64."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from engine import ops
from engine.platform import OpTable
from engine_triton.architecture import Architecture
from engine_triton.linear import rounding
from engine_triton.linear.experts import Experts
from engine_triton.linear.weights import Weight, plain

TOLERANCES = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}
STORES: dict[str, Callable[[Tensor], Weight]] = {
    "plain": plain,
    "int8": rounding.to_int8,
    "int4": rounding.to_int4,
    "fp8": rounding.to_fp8,
}
#: (experts, active, width, inner width, tokens)
SIZES = ((8, 2, 64, 96, 7), (5, 3, 80, 40, 19), (3, 1, 33, 17, 50), (2, 2, 40, 24, 1))


def exact(gate_up: Tensor, down: Tensor, *arguments: Tensor) -> Tensor:
    table = OpTable()
    ops.fill(table)
    reference = table.reference("mixture_of_experts")(gate_up.double(), down.double())
    x, share, ids = arguments
    result: Tensor = reference(x.double(), share.double(), ids)
    return result


def as_stored(store: Callable[[Tensor], Weight], weight: Tensor) -> Tensor:
    flat = weight.flatten(0, 1)
    return store(flat).rows(torch.arange(len(flat)), torch.float32).view(weight.shape)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(
    ("store", "dtype"),
    [
        ("plain", torch.float16),
        *((store, dtype) for store in STORES for dtype in (torch.float32, torch.bfloat16)),
    ],
)
def test_each_token_gets_the_sum_of_its_experts(
    architecture: Architecture, store: str, size: tuple[int, ...], dtype: torch.dtype
) -> None:
    experts, active, width, inner, tokens = size
    random = torch.Generator().manual_seed(sum(size))
    gate_up = (torch.randn(experts, 2 * inner, width, generator=random) * 0.2).to(dtype)
    down = (torch.randn(experts, width, inner, generator=random) * 0.2).to(dtype)
    x = torch.randn(tokens, 2 * width, generator=random).to(dtype)[:, :width]
    share, ids = torch.rand(tokens, experts, generator=random).softmax(-1).topk(active)
    layer = Experts(gate_up, down, STORES[store], architecture)
    found = layer(x, share, ids)
    kept = (as_stored(STORES[store], gate_up), as_stored(STORES[store], down))
    right = exact(*kept, x, share, ids)
    assert found.dtype == dtype
    assert float((found.double() - right).abs().max() / right.abs().max()) < TOLERANCES[dtype]
    if size == SIZES[0]:
        torch.testing.assert_close(layer(x, share, ids), found, rtol=0, atol=0)


def test_an_expert_that_nobody_chose_is_not_computed(architecture: Architecture) -> None:
    gate_up, down = torch.ones(3, 32, 16), torch.ones(3, 16, 16)
    gate_up[1], down[1] = torch.nan, torch.nan
    ids, share = torch.tensor([[0, 2], [2, 0]]), torch.full((2, 2), 0.5)
    assert (
        Experts(gate_up, down, plain, architecture)(torch.ones(2, 16), share, ids).isfinite().all()
    )


def test_no_tokens_give_no_tokens(architecture: Architecture) -> None:
    layer = Experts(torch.ones(3, 32, 16), torch.ones(3, 16, 16), plain, architecture)
    nothing = layer(torch.empty(0, 16), torch.empty(0, 2), torch.empty(0, 2, dtype=torch.int64))
    assert nothing.shape == (0, 16)


def test_rounded_experts_say_what_they_keep(architecture: Architecture) -> None:
    gate_up, down = torch.ones(4, 512, 512).bfloat16(), torch.ones(4, 512, 256).bfloat16()
    whole = gate_up.nbytes + down.nbytes
    kept = Experts(gate_up, down, rounding.to_int8, architecture).num_bytes
    assert kept == pytest.approx(whole / 2, rel=0.02)
