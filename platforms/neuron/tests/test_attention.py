"""What one request left in a block is nothing to the next one that has it."""

import pytest
import torch
from host_neuron import StepwiseMaker

from engine.platform import AttentionSpec, StepMetadata
from engine_neuron.attention import PAD, NkiAttention, TorchAttention

SIZE, DIM = 32, 16


def step(length: int) -> StepMetadata:
    """The last token of one request, in block 0."""
    starts, lengths = torch.tensor([0, 1]), torch.tensor([length])
    table, slots = torch.tensor([[0, PAD]]), torch.tensor([length - 1])
    return StepMetadata(starts, lengths, table, slots, 1, 2 * SIZE, 1)


@pytest.mark.usefixtures("kernels_here")
@pytest.mark.parametrize("left", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("kind", [NkiAttention, TorchAttention])
def test_numbers_that_are_not_finite_do_not_outlive_their_request(kind, left):
    spec = AttentionSpec(
        num_heads=2,
        num_kv_heads=1,
        head_dim=DIM,
        scale=DIM**-0.5,
        dtype="float32",
        kv_dtype="float32",
        block_size=SIZE,
    )
    attention = kind(spec, "cpu:0", StepwiseMaker())
    cache = attention.allocate(2)
    bad = torch.full((1, 1, DIM), left)
    _, cache = attention.forward(
        torch.ones(1, 2, DIM), bad, bad, cache, attention.plan(step(length=6))
    )
    k, v = torch.randn(2, 1, 1, DIM, generator=torch.Generator().manual_seed(0))
    found, _ = attention.forward(torch.ones(1, 2, DIM), k, v, cache, attention.plan(step(length=1)))
    assert torch.allclose(found, v.expand(1, 2, DIM)), "its only token is all that it sees"
