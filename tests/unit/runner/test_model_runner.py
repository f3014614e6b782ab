from contextlib import contextmanager
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import LLM, SamplingParams
from engine.assemble import assemble
from engine.platform import GraphRunner, MemoryProfiler, MemorySnapshot
from engine.plugins import PluginManager
from engine.request import Submission
from engine.runner import model_runner
from engine.runner.memory import MIB
from engine.runner.model_runner import MULTIPLIED
from engine.runner.rehearsal import dummy_batch, largest_steps, smaller_step
from engine.testing.checks.driving import run
from engine.testing.checks.interposed import GraphsAround, Interposed, Parts, interpose
from engine.testing.checks.subject import OnlyThis

SIZES = st.integers(1, 5000)


@given(max_tokens=SIZES, max_requests=SIZES, max_model_len=SIZES)
def test_the_steps_that_are_measured_keep_every_limit(max_tokens, max_requests, max_model_len):
    for sizes in largest_steps(max_tokens, max_requests, max_model_len):
        assert sum(sizes) <= max_tokens
        assert 1 <= len(sizes) <= max_requests
        assert all(1 <= size <= max_model_len for size in sizes)


def test_the_steps_that_are_measured_are_as_full_as_the_limits_allow():
    assert largest_steps(2048, 4, 900) == [[900, 900, 248], [512] * 4]
    assert largest_steps(100, 1, 400) == [[100], [100]]


@given(max_tokens=SIZES, max_requests=SIZES, max_model_len=SIZES, sample=st.integers(1, 100))
def test_a_small_step_has_the_same_contexts_and_few_tokens(
    max_tokens, max_requests, max_model_len, sample
):
    for sizes in largest_steps(max_tokens, max_requests, max_model_len):
        small = smaller_step(sizes, sample)
        assert all(0 <= start < stop for start, stop in small)
        assert [stop for _, stop in small] == sizes[: len(small)]
        assert sum(stop - start for start, stop in small) <= sample
        if sum(sizes) <= sample:
            assert small == [(0, size) for size in sizes]
        else:
            assert len(small) == min(len(sizes), max(1, sample // sizes[0]))


def test_a_small_step_is_the_end_of_a_long_prompt_or_some_of_many():
    assert smaller_step([2048], 64) == [(1984, 2048)]
    assert smaller_step([8] * 256, 64) == [(0, 8)] * 8
    assert smaller_step([5], 64) == [(0, 5)]
    assert smaller_step([900, 900, 248], 2048) == [(0, 900), (0, 900), (0, 248)]


def test_a_dummy_batch_gives_each_prompt_blocks_of_its_own():
    batch = dummy_batch([(16, 20), (0, 3)], block_size=8)
    assert [part.blocks for part in batch.slices] == [(0, 1, 2), (3,)]
    assert batch.num_tokens == 7


def test_a_dummy_batch_begins_anew_where_a_small_cache_ends():
    batch = dummy_batch([(0, 20), (0, 9)], block_size=8, num_blocks=4)
    assert [part.blocks for part in batch.slices] == [(0, 1, 2), (3, 0)]


def test_an_engine_is_loaded_when_the_device_is_done_with_its_warm_up():
    seen: list[str] = []

    class Graphs(GraphsAround):
        def warm_up(self, forward, make_inputs):
            seen.append("warm_up")
            super().warm_up(forward, make_inputs)

    class Watched(Interposed):
        def synchronize(self):
            seen.append("synchronize")

    cpu = PluginManager().select("cpu")
    parts = Parts(graphs=Graphs)
    spec = replace(cpu, create=lambda config, rank: Watched(cpu.create(config, rank), parts))
    assemble({"device": "cpu", "max_model_len": 64, "num_blocks": 16}, OnlyThis(spec)).close()
    assert seen[-2:] == ["warm_up", "synchronize"]


class WrittenOnTheWay(MemoryProfiler):
    """A device that gives the cache its memory when a step writes it, and 7 MiB to the step."""

    def __init__(self) -> None:
        self._used = self._peak = 0

    def snapshot(self) -> MemorySnapshot:
        total = 10**10
        return MemorySnapshot(total, total - self._used, self._used, max(self._used, self._peak))

    @contextmanager
    def measure(self):
        self._used += 300 * MIB
        self._peak = self._used + 7 * MIB
        yield


@pytest.mark.parametrize(("max_batch_tokens", "needed"), [(8, 7), (80, 7 * 10 * MULTIPLIED)])
def test_what_stays_after_a_step_is_not_what_a_step_needs(monkeypatch, max_batch_tokens, needed):
    monkeypatch.setattr(model_runner, "MEASURE_S", 0.0)  # one sample of 8 tokens
    spec = interpose(PluginManager().select("cpu"), Parts(memory=lambda part: WrittenOnTheWay()))
    settings = {"device": "cpu", "max_model_len": 512, "num_blocks": 16, "max_requests": 1}
    engine = assemble({**settings, "max_batch_tokens": max_batch_tokens}, OnlyThis(spec))
    ledger = engine.loop.runner.ledger
    engine.close()
    assert ledger.activations == needed * MIB


def test_an_engine_for_one_short_request_starts_and_answers():
    with LLM(device="cpu", max_requests=1, max_model_len=100) as llm:
        found = llm.generate(["Hello", "Hi"], SamplingParams(max_tokens=5, ignore_eos=True))
    assert [len(one.outputs[0].token_ids) for one in found] == [5, 5]


class WithLogits(GraphsAround):
    """Has the logits of every row of a step, as a program that ends with them has."""

    def __init__(self, inner: GraphRunner) -> None:
        super().__init__(inner)
        self.calls: list[str] = []
        self.hidden = self.found = None

    def will_project(self, logits, vocab_size):
        self.calls.append("will_project")
        self.logits, self.vocab_size = logits, vocab_size

    def reserve(self, activations):
        self.calls.append("reserve")
        return super().reserve(activations)

    def run(self, forward, inputs):
        self.hidden = super().run(forward, inputs)
        self.found = self.logits(self.hidden)
        return self.hidden

    def project_all(self, logits, hidden):
        assert hidden is self.hidden  # of the last step, as it came
        self.calls.append("project_all")
        return self.found

    def report(self):
        return "all programs have logits"


def test_a_graph_runner_may_have_the_logits_of_a_step():
    made: list[WithLogits] = []

    def around(inner):
        made.append(WithLogits(inner))
        return made[-1]

    params = SamplingParams(max_tokens=4, ignore_eos=True, temperature=0.0, prompt_logprobs=1)
    asked = [Submission(str(n), tuple(range(5, 5 + n)), params) for n in (1, 4, 7)]
    cpu = PluginManager().select("cpu")
    settings = {"device": "cpu", "max_model_len": 64, "num_blocks": 16, "max_requests": 3}
    settings["max_batch_tokens"] = 16
    tokens = []
    for spec in (cpu, interpose(cpu, Parts(graphs=around))):
        engine = assemble(settings, OnlyThis(spec))
        tokens.append({key: one.tokens for key, one in run(engine.loop, *asked).items()})
        ledger = engine.facts.ledger
        engine.close()
    assert tokens[0] == tokens[1]
    [graphs] = [one for one in made if one.calls]
    assert graphs.calls[0] == "will_project"
    assert "reserve" in graphs.calls
    assert graphs.calls.count("project_all") >= 3
    assert graphs.vocab_size == engine.facts.model.vocab_size
    assert "all programs have logits\noperations from" in ledger
