"""A model divided over two ranks computes what it computes in one."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from engine.errors import ModelError
from engine.models.architecture import resolve
from engine.models.declarations import LLAMA
from engine.models.share import share
from engine.platform import SoloCommunicator

from .families import SIZES, load, make, save
from .oracle import Cache, run

TOKENS = list(range(3, 90, 6))
FAMILIES = {
    "llama with biases": (
        "LlamaForCausalLM",
        {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "one key head for both, odd vocabulary": (
        "Qwen3ForCausalLM",
        {"num_key_value_heads": 1, "vocab_size": 97, "head_dim": 16},
    ),
    "phi3, fused": ("Phi3ForCausalLM", {"sliding_window": 9}),
    "mixtral": ("MixtralForCausalLM", {"num_local_experts": 4}),
}


class Threads(SoloCommunicator):
    """The collectives that a decoder needs, between threads of one process."""

    def __init__(self, rank: int, meeting: threading.Barrier, table: list[torch.Tensor]) -> None:
        self.rank, self.size = rank, len(table)
        self._meeting, self._table = meeting, table

    def all_reduce(self, x):
        return torch.stack(self._exchange(x)).sum(0)

    def all_gather(self, x, dim=-1):
        return torch.cat(self._exchange(x), dim)

    def _exchange(self, x):
        self._table[self.rank] = x
        self._meeting.wait(60)
        parts = list(self._table)
        self._meeting.wait(60)
        return parts


@pytest.mark.parametrize(("architecture", "settings"), FAMILIES.values(), ids=FAMILIES.keys())
def test_two_ranks_have_the_logits_of_one(architecture, settings, tmp_path):
    folder = save(make(architecture, **(SIZES | settings)), tmp_path)
    meeting, table = threading.Barrier(2), [torch.empty(0)] * 2

    def run_rank(rank: int) -> torch.Tensor:
        model = load(folder, communicator=Threads(rank, meeting, table))
        assert model.attention_specs()[0].num_heads == 4
        return run(model, [(Cache(), TOKENS)])[0]

    with ThreadPoolExecutor(2) as ranks:
        divided = list(ranks.map(run_rank, range(2)))
    alone = run(load(folder), [(Cache(), TOKENS)])[0]
    for logits in divided:
        torch.testing.assert_close(logits, alone, atol=1e-5, rtol=0)


def architecture(**changes):
    config = SIZES | {"attention_bias": False, "mlp_bias": False, "hidden_act": "silu"}
    config |= {"rms_norm_eps": 1e-5, "tie_word_embeddings": False}
    return resolve(LLAMA, config | changes)


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_every_head_and_row_has_a_rank(size):
    parts = [share(architecture(), rank, size) for rank in range(size)]
    assert [head for part in parts for head in part.heads] == list(range(8))
    assert [row for part in parts for row in part.feed_forward] == list(range(112))
    assert [row for part in parts for row in part.vocab] == list(range(96))
    for part in parts:  # each query head's own key head is there
        assert {head // 4 for head in part.heads} == set(part.kv_heads)


def test_what_cannot_be_divided_is_refused():
    with pytest.raises(ModelError, match=r"8 heads, 2 key/value heads.*evenly over 3 devices"):
        share(architecture(), 0, 3)
