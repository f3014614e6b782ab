"""Weights and caches in fp8: within the range of the device at hand, against float64."""

import gaudi_on_cpu
import pytest
import torch

from engine import ops as core
from engine.assemble import assemble
from engine.config import EngineConfig
from engine.errors import UnsupportedError
from engine.platform import AttentionSpec, OpTable
from engine.platform.ops import MissingOperationError
from engine.testing.checks import tiny_model
from engine.testing.checks.driving import ask, error_of, run
from engine.testing.checks.subject import OnlyThis
from engine_gaudi import kernels, ops
from engine_gaudi.platform import GaudiPlatform

GENERATIONS = {"GAUDI2": 240, "GAUDI3": 448}
SPEC = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 64, "block_size": 128, "scale": 0.125}


def factory(name, generation, dtype="bfloat16", **facts):
    table = OpTable()
    core.fill(table)
    ops.register(table, kernels.choose(), lambda: generation)
    return table.choose(name, dtype=dtype, device="cpu", quantization="fp8", **facts)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def share_of(off, exact):
    return float(off.square().mean().sqrt() / exact.square().mean().sqrt())


@pytest.mark.parametrize(("generation", "largest"), GENERATIONS.items())
def test_each_row_s_largest_weight_becomes_the_largest_number_of_the_generation(
    generation, largest
):
    weight = normal(6, 32).bfloat16() * torch.tensor([1e-4, 1, 1, 30, 1, 0])[:, None].bfloat16()
    made = factory("linear", generation)(weight, None)
    levels = made._weight_OI.float()
    assert levels[:5].abs().amax(1).tolist() == [largest] * 5
    assert levels[5].tolist() == [0] * 32
    eye = torch.eye(32).bfloat16()
    torch.testing.assert_close(made(eye).T.float(), weight.float(), rtol=2**-4, atol=1e-6)


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_products_in_fp8_cost_what_three_bits_of_mantissa_do(generation, dtype):
    weight, bias, x = normal(192, 576), normal(192, seed=1), normal(5, 3, 576, seed=2)
    weight, bias, x = weight.to(dtype), bias.to(dtype), x.to(dtype)
    made = factory("linear", generation, str(dtype).removeprefix("torch."))(weight, bias)
    found, exact = made(x), x.double() @ weight.double().T + bias.double()
    assert (found.dtype, found.shape) == (dtype, exact.shape)
    assert 0.02 < share_of(found.double() - exact, exact) < 0.05
    assert made.num_bytes == 192 * 576 + 192 * 4


def test_a_token_that_is_not_finite_spoils_itself_alone():
    x = normal(4, 64).bfloat16()
    made = factory("linear", "GAUDI2")(normal(8, 64).bfloat16(), None)
    sound = made(x)
    x[1, 3], x[2, 3] = float("nan"), float("inf")
    found = made(x)
    assert found[1:3].isnan().all()
    assert torch.equal(found[[0, 3]], sound[[0, 3]])


def test_a_tied_embedding_gives_the_rows_that_its_product_sees():
    weight = normal(32, 64).bfloat16()
    look_up, linear = factory("tied_embedding", "GAUDI3")(weight)
    rows = look_up(torch.tensor([3, 0, 31]))
    assert rows.dtype == torch.bfloat16
    assert share_of(rows.double() - weight[[3, 0, 31]].double(), weight.double()) < 0.04
    assert linear(weight).shape == (32, 32)


def test_a_mixture_s_experts_are_rounded_each_and_no_expert_disturbs_another():
    gate_up, down = normal(4, 192, 64) / 8, normal(4, 64, 96, seed=1) / 10
    x, ids = normal(5, 64, seed=2), torch.tensor([[0, 1], [1, 2], [3, 0], [2, 3], [0, 2]])
    share = torch.rand(5, 2, generator=torch.Generator().manual_seed(3))
    exact = torch.zeros(5, 64, dtype=torch.float64)
    for token, experts in enumerate(ids.tolist()):
        for place, expert in enumerate(experts):
            gate, inner = (gate_up[expert].double() @ x[token].double()).chunk(2)
            outer = down[expert].double() @ (torch.nn.functional.silu(gate) * inner)
            exact[token] += share[token, place] * outer
    made = factory("mixture_of_experts", "GAUDI2", "float32")(gate_up.clone(), down.clone())
    assert share_of(made(x, share, ids).double() - exact, exact) < 0.08
    gate_up[3] = 1e30  # where a token does not go, nothing of it comes
    made = factory("mixture_of_experts", "GAUDI2", "float32")(gate_up, down)
    assert made(x, share, ids)[[0, 1, 4]].isfinite().all()


def test_a_device_whose_range_nobody_knows_is_refused_by_its_name():
    with pytest.raises(MissingOperationError, match=r"known of GAUDI2, GAUDI3, .* is GAUDI\b"):
        factory("linear", "GAUDI")


@pytest.mark.parametrize(("generation", "largest"), GENERATIONS.items())
def test_a_cache_holds_what_fits_the_generation_and_no_more(generation, largest, monkeypatch):
    monkeypatch.setattr(GaudiPlatform, "generation", generation)
    monkeypatch.setattr(GaudiPlatform, "torch_device", "cpu")
    spec = AttentionSpec(**SPEC, dtype="bfloat16", kv_dtype="fp8_e4m3")
    backend = GaudiPlatform(EngineConfig(device="gaudi")).attention(spec)
    assert backend.kv_layout().bytes_per_block == 2 * 128 * 2 * 64
    kept = backend._as_kept(torch.tensor([1e4, -1e4, 239, 1.03, float("nan")]).bfloat16())
    assert kept.float()[:4].tolist() == [largest, -largest, 240, 1]
    assert kept.float()[4].isnan()


def test_a_cache_in_fp8_is_refused_where_its_range_is_unknown(monkeypatch):
    monkeypatch.setattr(GaudiPlatform, "generation", "GAUDI")
    spec = AttentionSpec(**SPEC, dtype="bfloat16", kv_dtype="fp8_e4m3")
    with pytest.raises(UnsupportedError, match="this device is GAUDI"):
        GaudiPlatform(EngineConfig(device="gaudi")).attention(spec)


def test_a_model_answers_with_weights_and_cache_in_fp8(tmp_path):
    [spec] = gaudi_on_cpu.engine_platforms()
    model = tmp_path / "tiny"
    model.mkdir()
    settings = {
        "model": str(tiny_model.make(model)),
        "device": spec.name,
        "quantization": "fp8",
        "kv_dtype": "fp8_e4m3",
        "max_requests": 1,
        "max_batch_tokens": 128,
        "max_model_len": 256,
        "num_blocks": 4,
    }
    engine = assemble(settings, OnlyThis(spec))
    found = run(engine.loop, ask("a", tuple(3 + 7 * i % 90 for i in range(40)), 8))
    assert "linear" in engine.loop.runner.report().split("from gaudi:")[1]
    engine.close()
    assert 0.001 < error_of(tiny_model.ModelOracle(model), found.values(), 8) < 1.0
