"""The bridge's kernels are called as it documents them, and torch's stand in where it is absent."""

import importlib

import gaudi_on_cpu
import pytest
import torch

from engine import ops as core
from engine.platform import OpTable
from engine.testing.conformance import PlatformTests
from engine_gaudi import kernels, ops
from engine_gaudi.kernels import FUSED_HEAD_DIMS

FACTS = {"dtype": "bfloat16", "device": "hpu:0", "width": 64}


@pytest.mark.usefixtures("operations")
class TestWithTheBridgesKernels(PlatformTests):
    """The bridge is a stand-in: what is checked is how its kernels are asked."""

    levels = ("ops", "attention")

    @pytest.fixture
    def platform(self, vendor):
        [spec] = gaudi_on_cpu.engine_platforms()
        return spec


def table_of(chosen):
    table = OpTable()
    core.fill(table)
    ops.register(table, chosen, lambda: "GAUDI2")
    return table


def source_of(table, name, **facts):
    table.choose(name, **facts)
    [answer] = [one for one in table.answers if one.name == name]
    return answer.source, dict(answer.refused).get("gaudi", "")


def test_without_the_bridge_the_core_s_operations_serve_and_the_reason_is_told():
    table = table_of(kernels.choose())
    for name in ("rms_norm", "add_rms_norm", "rotary"):
        source, why = source_of(table, name, **FACTS)
        assert source == "reference"
        assert why == "Intel's bridge (habana_frameworks) is not installed"


def test_with_the_bridge_its_own_serve_but_not_in_every_dtype(vendor):
    table = table_of(kernels.choose())
    for name in ("rms_norm", "add_rms_norm", "rotary"):
        assert source_of(table, name, **FACTS) == ("gaudi", "")
    source, why = source_of(table_of(kernels.choose()), "rms_norm", **FACTS | {"dtype": "float16"})
    assert (source, why) == ("reference", "dtype float16 is none of bfloat16, float32")


def test_experts_never_ask_the_device_which_of_them_were_chosen():
    facts = {"experts": 4, "width": 8, "expert_width": 8, "dtype": "float32", "device": "cpu"}
    make = table_of(kernels.choose()).choose("mixture_of_experts", quantization=None, **facts)
    random = torch.Generator().manual_seed(0)
    gate_up, down = torch.randn(4, 16, 8, generator=random), torch.randn(4, 8, 8, generator=random)
    x, share = torch.randn(5, 8, generator=random), torch.rand(5, 2, generator=random)
    ids = torch.randint(4, (5, 2), generator=random)
    graphs = []

    def keep(graph, examples):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(make(gate_up, down), backend=keep, fullgraph=True, dynamic=False)
    right = table_of(kernels.choose()).reference("mixture_of_experts")(gate_up, down)
    torch.testing.assert_close(compiled(x, share, ids), right(x, share, ids))
    other = (ids + 1) % 4
    torch.testing.assert_close(compiled(x, share, other), right(x, share, other))
    assert len(graphs) == 1


@pytest.mark.parametrize("head_dim", [64, 80, 128])
def test_fused_attention_serves_prompts_of_the_usual_head_sizes(vendor, head_dim):
    from engine.platform import AttentionSpec, StepMetadata
    from engine_gaudi.attention import FlatPagedAttention

    shape = {"num_heads": 4, "num_kv_heads": 2, "head_dim": head_dim, "block_size": 128}
    spec = AttentionSpec(**shape, dtype="bfloat16", kv_dtype="bfloat16", scale=0.1)
    backend = FlatPagedAttention(spec, "cpu", kernels.choose())
    step = StepMetadata(
        query_start=torch.tensor([0, 5], dtype=torch.int32),
        lengths=torch.tensor([5], dtype=torch.int32),
        block_table=torch.zeros(1, 1, dtype=torch.int32),
        slots=torch.arange(5),
        max_query=5,
        max_length=5,
        num_decodes=0,
    )
    q, k = torch.ones(5, 4, head_dim).bfloat16(), torch.ones(5, 2, head_dim).bfloat16()
    out, _ = backend.forward(q, k, k.clone(), backend.allocate(1), backend.plan(step))
    assert torch.equal(out, torch.ones_like(q))
    calls = importlib.import_module("habana_frameworks.torch.hpex.kernels").calls
    assert calls == (["FusedSDPA"] if head_dim in FUSED_HEAD_DIMS else [])


def test_products_in_fp8_are_the_bridge_s_and_within_the_range_of_its_device(vendor, operations):
    random = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(24, 64, generator=random), torch.randn(24, generator=random)
    x = torch.randn(3, 2, 64, generator=random)
    facts = {"dtype": "float32", "device": "cpu", "quantization": "fp8"}
    make = table_of(kernels.choose()).choose("linear", **facts)
    found = make(weight, bias)(x)
    assert operations == ["cast_to_fp8_v2", "cast_to_fp8_v2", "fp8_gemm_v2"]
    exact = x.double() @ weight.double().T + bias.double()
    assert (found.double() - exact).square().mean().sqrt() < 0.06 * exact.square().mean().sqrt()


def test_numbers_that_only_the_third_generation_has_are_no_numbers_on_the_second(operations):
    beyond = kernels.fused_to_fp8(torch.full((1, 4), 500.0), 448)
    kept = kernels.fused_to_fp8(torch.full((1, 4), 500.0), 240)
    assert kernels.fused_from_fp8(beyond, torch.float32).isnan().all()
    assert kernels.fused_from_fp8(kept, torch.float32).tolist() == [[240] * 4]
