"""What the warm-up captures: what it calls the model with, and what becomes of sizes it cannot."""

import logging

import pytest
import torch
from captured_steps import LIMITS, decode_step, forward, model, prompt_step

from engine.platform import StepLimits
from engine_triton.architecture import Architecture
from engine_triton.capture import CapturedRunner


def test_what_cannot_be_captured_is_told_counted_and_computed_all_the_same(host, caplog):
    host.refuses = {4, 6}
    runner = CapturedRunner(host, LIMITS, Architecture.named("interpreter"))
    with caplog.at_level(logging.INFO, logger="engine_triton.capture"):
        runner.warm_up(model, prompt_step)
    assert set(runner.failures) == {4, 6}
    assert "no program for decode steps of 6 requests" in caplog.text
    assert "decode programs: 2 of 4 captured in" in caplog.text
    assert runner.report() in caplog.text
    assert " for 1, 2 requests\n" in runner.report()
    assert "no program for 4: operation not permitted when stream is capturing" in runner.report()
    for count in (2, 3, 5):
        inputs = decode_step(count, seed=count)
        assert torch.equal(runner.run(model, inputs), forward(inputs))
    assert (runner.num_compiled, runner.num_uncaptured) == (2, 2)


def test_a_size_that_could_not_be_captured_takes_a_larger_program(host):
    host.refuses = {4}
    runner = CapturedRunner(host, LIMITS, Architecture.named("interpreter"))
    runner.warm_up(model, prompt_step)
    inputs = decode_step(3)
    assert torch.equal(runner.run(model, inputs), forward(inputs))
    assert runner.num_uncaptured == 0


def test_ranks_use_only_programs_that_all_of_them_have(host):
    """A step that one rank pads to 4 requests and another to 6 would never meet in a collective."""
    host.refuses = {1}
    told = []

    def agree(captured):
        told.append(captured)
        return [had and size != 4 for had, size in zip(captured, 2 * (1, 2, 4, 6), strict=True)]

    runner = CapturedRunner(host, LIMITS, Architecture.named("interpreter"), agree)
    runner.warm_up(model, prompt_step)
    assert told == [[False] * 4 + [False, True, True, True]]  # none with logits
    assert list(runner._programs) == [2, 6]
    assert runner.failures[4] == "another rank could not capture it"
    inputs = decode_step(3)
    assert torch.equal(runner.run(model, inputs), forward(inputs))


def test_a_model_that_waits_for_the_device_cannot_be_captured(host):
    def waits(inputs):
        return model(inputs) * float(inputs.metadata.lengths.max())

    runner = CapturedRunner(host, LIMITS, Architecture.named("interpreter"))
    runner.warm_up(waits, prompt_step)
    assert set(runner.failures) == {1, 2, 4, 6}
    assert "not permitted" in runner.failures[1]


def test_an_error_of_the_model_is_an_error_of_the_start(host):
    def broken(inputs):
        raise ValueError("the model is broken")

    runner = CapturedRunner(host, LIMITS, Architecture.named("interpreter"))
    with pytest.raises(ValueError, match="the model is broken"):
        runner.warm_up(broken, prompt_step)


@pytest.mark.parametrize(
    ("max_model_len", "max_tokens", "asked"), [(200, 64, [15]), (5, 64, [5]), (1, 64, [1])]
)
def test_prompts_of_the_warm_up_need_no_more_than_one_block_of_the_cache(
    host, max_model_len, max_tokens, asked
):
    """The cache has a block at least, and nobody knows whether it has two."""
    limits = StepLimits(
        max_tokens=max_tokens, max_requests=2, max_model_len=max_model_len, block_size=4
    )
    seen = []

    def note(inputs):
        seen.append(inputs)
        return model(inputs)

    runner = CapturedRunner(host, limits, Architecture.named("interpreter"))
    runner.warm_up(note, prompt_step)
    prompts = seen[: len(asked)]
    assert [len(one.input_ids) for one in prompts] == asked
    for one in prompts:
        assert one.metadata.lengths.tolist() == [len(one.input_ids)]
        assert one.metadata.block_table.shape == (1, -(-len(one.input_ids) // 4))
        assert not one.metadata.block_table.any()
        assert (one.metadata.slots == -1).all()


def test_a_gpu_sees_prompts_of_every_size_that_has_kernels_of_its_own():
    limits = StepLimits(max_tokens=512, max_requests=2, max_model_len=200, block_size=16)
    runner = CapturedRunner(None, limits, Architecture.named("sm_90"))
    assert runner._prompts() == [15, 16, 17, 48, 65, 128, 200]


def test_memory_for_programs_is_asked_for_before_the_cache_takes_it(host):
    runner = CapturedRunner(host, LIMITS, Architecture.named("interpreter"))
    few, many = runner.reserve(1 << 20), runner.reserve(1 << 30)
    inputs = 6 * (3 * 8 + 4 + 4 + 4 * 13)
    assert few == inputs + int((1 << 20) * 12 / 64) + 4 * (4 << 20)
    assert many - few == int((1 << 30) * 12 / 64) - int((1 << 20) * 12 / 64)
