"""What goes to the device and what comes back, where it computes while the host goes on."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from engine import LLM, SamplingParams
from engine.ops import staging
from engine.runner.model_runner import ModelRunner
from engine_cpu.platform import CpuPlatform


@pytest.fixture
def log(monkeypatch):
    """An engine on the CPU whose copies to the host are noted: when they start, and when waited."""
    log = []

    def to_host(self, x):
        number = sum(kind == "starts" for kind, _ in log)
        log.append(("starts", number))

        def wait():
            log.append(("waits", number))
            return x

        return wait

    def execute(self, batch):
        log.append(("step", len(batch.slices)))
        return run(self, batch)

    run = ModelRunner.execute
    monkeypatch.setattr(ModelRunner, "execute", execute)
    monkeypatch.setattr(CpuPlatform, "to_host", to_host)
    return log


def tokens(llm, **params):
    [found] = llm.generate(["Hello"], SamplingParams(max_tokens=4, ignore_eos=True, **params))
    return found.outputs[0]


def test_the_copy_of_a_steps_tokens_starts_before_the_next_step_and_is_awaited_after_it(log):
    with LLM(device="cpu", max_requests=1, max_model_len=100, overlap=True) as llm:
        log.clear()
        tokens(llm)
    first = log.index(("starts", 0))
    later = log.index(("step", 1), first)
    assert later < log.index(("waits", 0))


def test_logprobs_come_the_same_way(log):
    with LLM(device="cpu", max_requests=1, max_model_len=100, overlap=False) as llm:
        log.clear()
        found = tokens(llm, logprobs=2)
        steps = [kind for kind, _ in log if kind != "step"]
        assert steps.count("starts") == steps.count("waits") == 4 * (2 + 5)
        assert [one.token for one in found.logprobs] == list(found.token_ids)


def test_pinned_memory_is_used_where_it_is_asked_for(monkeypatch):
    pinned = []

    def pin_memory(self):
        pinned.append(self)
        return self

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    array = np.arange(3)
    assert staging.send(array, "cpu").tolist() == [0, 1, 2]
    assert pinned == []
    assert staging.send(array, "cpu", pinned=True).tolist() == [0, 1, 2]
    assert len(pinned) == 1


def test_a_platform_with_pinned_memory_has_all_that_a_step_sends_staged_in_it(monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(self) or self)
    plain = CpuPlatform.__init__

    def init(self, config, rank=0):
        plain(self, config, rank)
        self.capabilities = replace(self.capabilities, pinned_memory=True)

    monkeypatch.setattr(CpuPlatform, "__init__", init)
    with LLM(device="cpu", max_requests=1, max_model_len=100) as llm:
        before = len(pinned)
        tokens(llm)
    # Each of 4 steps: its numbers, its metadata, and where its token goes.
    assert len(pinned) - before >= 4 * 3
