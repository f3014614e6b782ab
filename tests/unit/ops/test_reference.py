"""The reference operations against formulas of their own in float64."""

import pytest
import torch
from torch.nn import functional

from engine import ops
from engine.platform import OpTable


@pytest.fixture
def table():
    table = OpTable()
    ops.fill(table)
    return table


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(3)


def test_every_operation_is_there_as_the_oracle_and_in_the_docstring(table):
    assert table.names == [
        "add_rms_norm",
        "argmax",
        "embedding",
        "gelu_tanh_and_multiply",
        "linear",
        "mixture_of_experts",
        "penalize",
        "rms_norm",
        "rotary",
        "rotary_angles",
        "sample",
        "silu_and_multiply",
        "tied_embedding",
    ]
    for name in table.names:
        assert table.choose(name, dtype="float32", device="cpu") is table.reference(name)
        assert f"\n{name} " in ops.__doc__


def test_rms_norm_is_torchs_own_in_float64(table):
    x, weight = torch.randn(5, 3, 16), torch.randn(16)
    wanted = functional.rms_norm(x.double(), (16,), weight.double(), eps=1e-3)
    torch.testing.assert_close(table.reference("rms_norm")(x, weight, 1e-3).double(), wanted)


def test_norms_of_bfloat16_are_computed_in_float32(table):
    x, weight = 300 * torch.randn(4, 64).bfloat16(), torch.randn(64).bfloat16()
    wanted = functional.rms_norm(x.double(), (64,), weight.double(), eps=1e-6).bfloat16()
    assert torch.equal(table.reference("rms_norm")(x, weight, 1e-6), wanted)


def test_add_rms_norm_gives_the_normed_sum_and_the_sum(table):
    x, residual, weight = torch.randn(4, 8), torch.randn(4, 8), torch.randn(8)
    normed, total = table.reference("add_rms_norm")(x, residual, weight, 1e-5)
    assert torch.equal(total, x + residual)
    wanted = functional.rms_norm(total.double(), (8,), weight.double(), eps=1e-5)
    torch.testing.assert_close(normed.double(), wanted)


@pytest.mark.parametrize("rotated", [8, 6, 2])
def test_rotary_turns_pairs_like_complex_numbers_and_leaves_the_rest(table, rotated):
    q, k = torch.randn(5, 4, 8), torch.randn(5, 2, 8)
    angles = torch.randn(5, rotated // 2)
    results = table.reference("rotary")(q, k, angles.cos(), angles.sin())
    for x, result in zip((q, k), results, strict=True):
        half = rotated // 2
        pairs = torch.complex(x[..., :half].double(), x[..., half:rotated].double())
        turned = pairs * torch.polar(torch.ones(5, 1, half).double(), angles.unsqueeze(1).double())
        wanted = torch.cat((turned.real, turned.imag, x[..., rotated:].double()), dim=-1)
        torch.testing.assert_close(result.double(), wanted, atol=1e-5, rtol=1e-5)


def test_rotary_angles_are_positions_times_frequencies(table):
    positions, frequencies = torch.tensor([0, 1, 1000]), torch.tensor([1.0, 0.01])
    cos, sin = table.reference("rotary_angles")(positions, frequencies, 2.0)
    angles = positions[:, None].double() * frequencies.double()
    torch.testing.assert_close(cos.double(), 2 * angles.cos(), atol=1e-4, rtol=0)
    torch.testing.assert_close(sin.double(), 2 * angles.sin(), atol=1e-4, rtol=0)


def test_a_tied_embedding_looks_up_and_gives_logits_with_one_matrix(table):
    weight, x = torch.randn(7, 4), torch.randn(3, 4)
    look_up, linear = table.reference("tied_embedding")(weight)
    assert torch.equal(look_up(torch.tensor([6, 0])), weight[[6, 0]])
    torch.testing.assert_close(linear(x), x @ weight.T)


def test_rotary_keeps_the_dtype_and_turns_in_float32(table):
    q, angles = torch.randn(3, 2, 4).bfloat16(), 1000 * torch.randn(3, 2)
    result, _ = table.reference("rotary")(q, q, angles.cos(), angles.sin())
    wide, _ = table.reference("rotary")(q.float(), q.float(), angles.cos(), angles.sin())
    assert torch.equal(result, wide.bfloat16())


def test_activations_gate_the_second_half_by_the_first(table):
    x = torch.randn(6, 10)
    gate, up = x[:, :5].double(), x[:, 5:].double()
    silu = gate / (1 + (-gate).exp()) * up
    inner = (2 / torch.pi) ** 0.5 * (gate + 0.044715 * gate**3)
    gelu = 0.5 * gate * (1 + torch.tanh(inner)) * up
    torch.testing.assert_close(table.reference("silu_and_multiply")(x).double(), silu)
    gelu_result = table.reference("gelu_tanh_and_multiply")(x).double()
    torch.testing.assert_close(gelu_result, gelu, atol=1e-6, rtol=1e-6)


def test_embedding_picks_rows(table):
    weight, ids = torch.randn(7, 3), torch.tensor([6, 0, 6])
    assert torch.equal(table.reference("embedding")(ids, weight), weight[[6, 0, 6]])


@pytest.mark.parametrize("biased", [True, False])
def test_linear_is_a_factory_that_owns_its_weight(table, biased):
    weight, bias, x = torch.randn(4, 6), torch.randn(4) if biased else None, torch.randn(2, 3, 6)
    wanted = x.double() @ weight.double().T + (bias.double() if biased else 0)
    result = table.reference("linear")(weight, bias)(x)
    torch.testing.assert_close(result.double(), wanted, atol=1e-5, rtol=1e-5)


def test_experts_are_mixed_by_their_shares(table):
    experts, width, inner, active = 5, 8, 6, 2
    gate_up, down = torch.randn(experts, 2 * inner, width), torch.randn(experts, width, inner)
    x = torch.randn(7, width)
    share, ids = torch.rand(7, experts).topk(active)
    ids[:] = ids.clamp(max=3)  # nobody chooses the last expert
    ids[:, 1] = (ids[:, 0] + 1) % 4
    result = table.reference("mixture_of_experts")(gate_up, down)(x, share, ids)
    wanted = torch.zeros(7, width, dtype=torch.float64)
    for token in range(7):
        for weight, expert in zip(share[token], ids[token], strict=True):
            gate, up = (gate_up[expert].double() @ x[token].double()).chunk(2)
            wanted[token] += weight.double() * (
                down[expert].double() @ (functional.silu(gate) * up)
            )
    torch.testing.assert_close(result.double(), wanted, atol=1e-4, rtol=1e-4)


def test_experts_of_no_tokens_give_no_rows(table):
    apply = table.reference("mixture_of_experts")(torch.randn(2, 4, 3), torch.randn(2, 3, 2))
    empty = torch.zeros(0, 1)
    assert apply(torch.zeros(0, 3), empty, empty.long()).shape == (0, 3)
