"""Captured decode steps with the output layer in them, as far as there is room for logits."""

import pytest
import torch
from captured_steps import LIMITS, decode_step, forward, model, prompt, prompt_step
from torch import Tensor

from engine_triton.architecture import Architecture
from engine_triton.capture import CapturedRunner


def logits(hidden: Tensor) -> Tensor:
    """[N, 7] of [N, 5]."""
    return hidden @ torch.arange(35.0, dtype=hidden.dtype).view(5, 7)


@pytest.fixture
def whole(host, monkeypatch) -> CapturedRunner:
    """Programs of up to 4 requests have logits; that of 6 has not: there is no room."""
    monkeypatch.setattr("engine_triton.capture.LOGITS_BYTES", (1 + 2 + 4) * 7 * 4)
    made = CapturedRunner(host, LIMITS, Architecture.named("interpreter"))
    made.will_project(logits, 7)
    made.warm_up(model, prompt_step)
    return made


def test_a_small_step_has_its_logits_when_it_was_replayed(whole):
    called = []

    def never(hidden):
        called.append(len(hidden))
        return logits(hidden)

    for seed, count in enumerate((1, 2, 3, 4, 3)):
        inputs = decode_step(count, seed)
        found = whole.project_all(never, whole.run(model, inputs))
        assert torch.equal(found, logits(forward(inputs)))
    assert called == []
    for count in (5, 6):
        inputs = decode_step(count)
        found = whole.project_all(never, whole.run(model, inputs))
        assert torch.equal(found, logits(forward(inputs)))
    assert called == [5, 6]
    assert "with the output layer for 1, 2, 4" in whole.report()


def test_logits_are_those_of_the_last_step_s_own_rows(whole):
    """Not of a step before it, and not of rows that somebody made of its result."""
    decode, prompts = decode_step(2), prompt_step(1, 2)
    before = whole.run(model, decode)
    assert torch.equal(whole.project_all(logits, before * 2), logits(forward(decode) * 2))
    found = whole.project_all(lambda hidden: hidden, whole.run(prompt, prompts))
    assert torch.equal(found, prompt(prompts))
    assert whole.project_all(lambda hidden: None, before) is None


def test_an_output_layer_that_cannot_be_captured_runs_beside_the_programs(host):
    def waits(hidden):
        return logits(hidden) * (1 + 0 * hidden.sum().item())

    runner = CapturedRunner(host, LIMITS, Architecture.named("interpreter"))
    runner.will_project(waits, 7)
    runner.warm_up(model, prompt_step)
    assert runner.failures == {}
    assert runner.num_compiled == 4
    inputs = decode_step(2)
    assert torch.equal(runner.project_all(waits, runner.run(model, inputs)), waits(forward(inputs)))
    assert "with the output layer for no" in runner.report()
    assert "the output layer runs beside them: aten._local_scalar_dense" in runner.report()


def test_ranks_have_the_same_collectives_in_a_step(host):
    """A rank without the output layer in its program would wait for another one in vain."""
    runner = CapturedRunner(
        host,
        LIMITS,
        Architecture.named("interpreter"),
        lambda captured: [False] * 4 + captured[4:],
    )
    runner.will_project(logits, 7)
    runner.warm_up(model, prompt_step)
    assert runner.num_compiled == 0
    assert set(runner.failures.values()) == {"another rank could not capture it"}


def test_room_for_logits_is_asked_for(host):
    runner = CapturedRunner(host, LIMITS, Architecture.named("interpreter"))
    before = runner.reserve(0)
    runner.will_project(logits, 1000)
    assert runner.reserve(0) - before == (1 + 2 + 4 + 6) * 1000 * 4
