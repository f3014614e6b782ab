"""A mixture of experts on simulated chips."""

import jax
import pytest
import torch

from engine.layers import Mixture, Site
from engine.ops import fill
from engine.platform import OpTable, SoloCommunicator
from engine_tpu import ops
from engine_tpu.placement import Placement
from engine_tpu.programs import Programs

EXPERTS, WIDTH, INNER, ACTIVE = 4, 16, 24, 2


def table(*, ours):
    found = OpTable()
    fill(found)
    if ours:
        ops.register(found, "tpu")
    return found


def mixture(*, ours, spoil=False):
    """The core's layer; `spoil`: one expert that no token chooses is not finite."""
    random = torch.Generator().manual_seed(0)
    router = torch.randn(EXPERTS, WIDTH, generator=random)
    gate_up = torch.randn(EXPERTS, 2 * INNER, WIDTH, generator=random)
    down = torch.randn(EXPERTS, WIDTH, INNER, generator=random)
    if spoil:
        router[3] = 0.0
        router[:3].abs_()
        gate_up[3] = torch.inf
    site = Site(table(ours=ours), SoloCommunicator(), torch.float32, "cpu")
    return Mixture(site, router, gate_up, down, ACTIVE)


def inputs(rows=9):
    return torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("chips", [1, 4])
def test_it_is_the_cores_mixture_divided_over_the_chips(chips):
    programs = Programs(Placement.over(jax.devices()[:chips]))
    layer, x = mixture(ours=True), inputs()
    program = programs.make(layer)
    wanted = mixture(ours=False)(x)
    assert torch.allclose(program(x).on_host(), wanted, atol=1e-4)
    divided = [one for one in program.weights if not one.sharding.is_fully_replicated]
    experts = 3 * EXPERTS  # gate, up and down of each
    assert len(divided) == (0 if chips == 1 else experts + 1), "of the router, too"


def test_an_expert_that_nobody_chose_spoils_nothing():
    x = inputs().abs()
    assert mixture(ours=True, spoil=True)(x).isfinite().all()


def test_quantized_weights_are_left_to_others():
    facts = {"dtype": "bfloat16", "device": "cpu", "experts": 4, "width": 8, "expert_width": 8}
    found = table(ours=True)
    chosen = found.choose("mixture_of_experts", **facts, quantization=None)
    assert chosen is ops.mixture_of_experts
    with pytest.raises(LookupError, match="it keeps weights as they are"):
        found.choose("mixture_of_experts", **facts, quantization="int8")
