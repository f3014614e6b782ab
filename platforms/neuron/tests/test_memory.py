"""Plan, compile, shrink."""

from dataclasses import replace

import pytest
import torch
from host_neuron import GIB, HostCalls, HostNeuron, TracedNeuron
from neuron_on_cpu import host_spec

from engine.assemble import assemble
from engine.testing.checks.driving import ask, run
from engine.testing.checks.subject import OnlyThis
from engine_neuron.memory import NeuronMemory

SMALL = {
    "device": "neuron_on_cpu",
    "max_requests": 2,
    "max_batch_tokens": 128,
    "max_model_len": 256,
    "dtype": "float32",
}


def test_what_the_allocator_holds_is_used_and_the_rest_is_free():
    calls = HostCalls()
    calls.reserved = 5 * GIB
    now = NeuronMemory(calls).snapshot()
    assert (now.total, now.free, now.used, now.peak) == (16 * GIB, 11 * GIB, 5 * GIB, 5 * GIB)
    assert calls.synchronized == 1, "the allocator is asynchronous"


class Roomy(HostNeuron):
    """Programs fit beside any cache."""

    total = 6 * 2**20

    def _open(self, indices):
        super()._open(indices)
        self._calls.total_memory = lambda: self.total


class Tight(TracedNeuron):
    """Programs fit beside a cache of so many blocks, and beside no larger one: so its compiler."""

    most = 12

    def _open(self, indices):
        super()._open(indices)
        self._calls.total_memory = lambda: 32 * 2**20

    def dynamo_backend(self, graph, examples):
        run = super().dynamo_backend(graph, examples)
        caches = [x for x in examples if isinstance(x, torch.Tensor) and x.dim() == 4]
        if max((len(x) for x in caches), default=0) > self.most + 2:  # its spare ones
            raise torch.OutOfMemoryError("the program needs more than there is")
        return run


def start(model, platform, **settings):
    spec = replace(host_spec(), create=platform)
    return assemble({"model": model, **SMALL, **settings}, OnlyThis(spec))


def test_the_cache_takes_its_share_of_the_memory_and_no_more(model):
    engine = start(model, Roomy, max_requests=4, max_model_len=1024)
    ledger = engine.loop.runner.ledger
    budget = int(Roomy.total * engine.platform.config.memory_fraction * 0.30)
    assert ledger.limited_by == "the device's share for a cache"
    assert budget - ledger.kv // ledger.num_blocks < ledger.kv <= budget
    engine.close()


def test_a_cache_beside_which_programs_do_not_fit_shrinks(model):
    engine = start(model, Tight)
    ledger = engine.loop.runner.ledger
    assert 0.7 * Tight.most < ledger.num_blocks <= Tight.most
    assert engine.facts.num_blocks == ledger.num_blocks
    assert ledger.limited_by == "all that compiled programs leave"
    [answer] = run(engine.loop, ask("a", (3, 4, 5), 4)).values()
    assert len(answer.tokens) == 4
    engine.close()


def test_a_number_of_blocks_that_the_user_gave_does_not_shrink(model):
    with pytest.raises(torch.OutOfMemoryError, match="needs more than there is"):
        start(model, Tight, num_blocks=13)
