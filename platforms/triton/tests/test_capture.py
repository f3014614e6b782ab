"""Captured decode steps, on a stand-in that records work as strictly as a graph does."""

from itertools import pairwise

import pytest
import torch
from captured_steps import LIMITS, Host, decode_step, forward, model, prompt, prompt_step
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.platform import StepLimits
from engine_triton.architecture import Architecture
from engine_triton.capture import CapturedRunner, Program, decode_sizes
from engine_triton.staging import PAD_LENGTH, PAD_SLOT


@pytest.fixture
def runner(host) -> CapturedRunner:
    made = CapturedRunner(host, LIMITS, Architecture.named("interpreter"))
    made.warm_up(model, prompt_step)
    return made


def test_sizes_double_and_have_one_between_from_16_on_up_to_the_limit():
    assert decode_sizes(1) == (1,)
    assert decode_sizes(6) == (1, 2, 4, 6)
    assert decode_sizes(100) == (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 100)
    assert decode_sizes(512)[-4:] == (192, 256, 384, 512)


@given(most=st.integers(1, 2000))
def test_sizes_ascend_and_end_with_the_most(most):
    sizes = decode_sizes(most)
    assert list(sizes) == sorted(set(sizes))
    assert sizes[-1] == most
    assert all(large <= 2 * small for small, large in pairwise(sizes))


def test_no_program_has_more_requests_than_a_step_has_tokens(host):
    limits = StepLimits(max_tokens=3, max_requests=64, max_model_len=32, block_size=16)
    runner = CapturedRunner(host, limits, Architecture.named("interpreter"))
    assert runner.sizes == (1, 2, 3)


def test_the_largest_is_captured_first(host, runner):
    assert [len_ for len_, _ in host.captured] == [6, 4, 2, 1]
    assert runner.num_compiled == 4


@settings(deadline=None, max_examples=15)
@given(steps=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 12)), min_size=2, max_size=6))
def test_no_step_reads_what_another_one_left_behind(steps):
    runner = CapturedRunner(Host(), LIMITS, Architecture.named("interpreter"))
    runner.warm_up(model, prompt_step)
    for seed, (count, width) in enumerate(steps):
        inputs = decode_step(count, seed, width)
        assert torch.equal(runner.run(model, inputs), forward(inputs))


def test_padding_is_stored_nowhere_and_sees_one_place_of_the_first_block(runner):
    runner.run(model, decode_step(6, width=12))
    runner.run(model, decode_step(3, width=2))
    buffers = runner._buffers.step(4)
    step = buffers.metadata
    assert step.slots[3] == PAD_SLOT == -1
    assert step.lengths[3] == PAD_LENGTH == 1
    assert not step.block_table[3].any()
    assert not step.block_table[:, 2:].any()  # nor does the longer step's table shine through
    assert (buffers.input_ids[3], buffers.positions[3]) == (0, 0)
    assert step.query_start.tolist() == [0, 1, 2, 3, 4]


def test_a_step_is_replayed_in_the_smallest_program_that_holds_it(runner, monkeypatch):
    played = []
    for size, program in runner._programs.items():
        recording = program.recording
        again = recording.replay
        replay = lambda size=size, again=again: (played.append(size), again())  # noqa: E731
        runner._programs[size] = Program(type(recording)(replay, recording.result), None)
    for count in range(1, 7):
        assert runner.run(model, decode_step(count)).shape == (count, 5)
    assert played == [1, 2, 4, 4, 6, 6]


def test_programs_keep_their_memory_and_the_model_is_not_called_again(runner):
    addresses = [one.data_ptr() for one in runner._buffers.tensors()]
    called = []
    first = runner.run(lambda inputs: called.append(1), decode_step(3))
    second = runner.run(lambda inputs: called.append(1), decode_step(4, seed=1))
    assert called == []
    assert first.data_ptr() == second.data_ptr()
    assert [one.data_ptr() for one in runner._buffers.tensors()] == addresses


def test_what_was_started_on_a_result_is_done_before_the_next_step_overwrites_it(runner):
    """As overlapped steps are: both are started, in order, before the first one's tokens are read.
    A program of another size leaves the result alone altogether."""
    first, second = decode_step(4, seed=1), decode_step(4, seed=2)
    hidden = runner.run(model, first)
    tokens = hidden.sum(1)  # started on the stream before the next step is
    other = runner.run(model, decode_step(2, seed=3))
    assert torch.equal(hidden, forward(first))
    runner.run(model, second)
    assert torch.equal(tokens, forward(first).sum(1))
    assert torch.equal(hidden, forward(second))
    assert torch.equal(other, forward(decode_step(2, seed=3)))


@pytest.mark.parametrize(("requests", "tokens"), [(1, 16), (2, 8), (3, 64 // 3 * 3)])
def test_steps_with_prompts_run_as_they_are(runner, requests, tokens):
    inputs = prompt_step(requests, tokens)
    seen = []

    def eager(given):
        seen.append(given)
        return prompt(given)

    runner.run(eager, inputs)
    assert [id(one) for one in seen] == [id(inputs)]
    assert runner.num_compiled == 4


def test_before_the_warm_up_every_step_runs_as_it_is(host):
    runner = CapturedRunner(host, LIMITS, Architecture.named("interpreter"))
    inputs = decode_step(3)
    assert torch.equal(runner.run(model, inputs), forward(inputs))
    assert (runner.num_compiled, runner.num_uncaptured) == (0, 0)


def test_before_a_model_is_loaded_the_sizes_are_told(host):
    runner = CapturedRunner(host, LIMITS, Architecture.named("interpreter"))
    assert runner.report() == "decode programs for 1, 2, 4, 6 requests, when the model is loaded"


def test_closing_drops_programs_and_buffers_and_may_be_done_twice(runner):
    runner.close()
    runner.close()
    assert runner.num_compiled == 0
    inputs = decode_step(2)
    assert torch.equal(runner.run(model, inputs), forward(inputs))
