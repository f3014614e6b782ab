"""A mixture of experts as one program."""

import torch
from host_neuron import HostNeuron, TracedNeuron

from engine.config import EngineConfig
from engine.ops import fill
from engine.ops.reference import mixture_of_experts as reference
from engine.platform import OpTable
from engine_neuron.ops import mixture_of_experts


def arguments(experts=4, tokens=9, width=16, inner=24):
    random = torch.Generator().manual_seed(0)
    gate_up = torch.randn(experts, 2 * inner, width, generator=random)
    down = torch.randn(experts, width, inner, generator=random)
    x = torch.randn(tokens, width, generator=random)
    share, ids = torch.rand(tokens, experts, generator=random).topk(2)
    return (gate_up, down), (x, share, ids)


def test_it_is_the_cores_mixture():
    weights, inputs = arguments()
    wanted = reference(*weights)(*inputs)
    assert torch.allclose(mixture_of_experts(*weights)(*inputs), wanted, atol=1e-4)


def test_it_is_one_graph_whoever_chooses_whom():
    weights, (x, share, ids) = arguments()
    platform = TracedNeuron(EngineConfig(device="neuron"))
    apply = mixture_of_experts(*weights)
    program = platform.maker.make(lambda x, share, ids: apply(x, share, ids))
    for chosen in (ids, ids.flip(0), torch.zeros_like(ids)):
        assert torch.allclose(program(x, share, chosen), apply(x, share, chosen), atol=1e-5)
    assert platform.maker.num_compiled == 1


def test_an_expert_that_nobody_chose_spoils_nothing():
    (gate_up, down), (x, share, ids) = arguments()
    gate_up[3] = torch.inf
    ids = ids.clamp(max=2)
    assert mixture_of_experts(gate_up, down)(x, share, ids).isfinite().all()


def test_it_serves_weights_as_they_are_and_leaves_others_to_the_core():
    table = OpTable()
    fill(table)
    HostNeuron(EngineConfig(device="neuron")).ops(table)
    facts = {"dtype": "bfloat16", "device": "neuron:0", "experts": 4, "width": 8}
    found = table.choose("mixture_of_experts", **facts, expert_width=8, quantization=None)
    assert found is mixture_of_experts
