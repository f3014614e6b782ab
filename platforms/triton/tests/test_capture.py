"""Captured decode steps, on a stand-in that records work as strictly as a graph does."""

import logging
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded import record
from torch import Tensor

from engine.platform import StepInputs, StepLimits, StepMetadata
from engine_triton.architecture import Architecture
from engine_triton.capture import CapturedRunner, Program, decode_sizes
from engine_triton.device import Device
from engine_triton.staging import PAD_LENGTH, PAD_SLOT

LIMITS = StepLimits(max_tokens=64, max_requests=6, max_model_len=200, block_size=16)


class Host(Device):
    """Memory that shrinks by a page a program."""

    name = "cpu:0"

    def __init__(self) -> None:
        self.captured: list[torch.Size] = []
        self.refuses: set[int] = set()
        self.free = 1 << 30

    def capture(self, work):
        made = record(work).recording
        if len(made.result) in self.refuses:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.captured.append(made.result.shape)
        self.free -= 4096
        return made

    def synchronize(self):
        """Nothing runs beside the host."""

    def memory(self):
        return self.free, 1 << 30

    def reserved(self):
        return 0, 0

    def forget_peak(self):
        """There is none."""

    def release_cached(self):
        """There is nothing."""

    def to_host(self, x):
        return lambda: x


def forward(inputs: StepInputs) -> Tensor:
    """[T, 5]: everything that a step of one token a request knows, computed on the device."""
    step = inputs.metadata
    entries = torch.arange(step.block_table.shape[1])
    used = entries < (step.lengths[:, None] + 15) // 16
    places = (torch.where(used, step.block_table, 0) * (entries + 1)).sum(1)
    known = (inputs.input_ids, inputs.positions, step.slots, step.lengths, places)
    return torch.stack([one.double() for one in known], dim=1)


def prompt(inputs: StepInputs) -> Tensor:
    """As the model is called for steps with prompts: only how many there are."""
    return inputs.positions[:, None].double()


def model(inputs: StepInputs) -> Tensor:
    return forward(inputs) if inputs.metadata.max_query == 1 else prompt(inputs)


def decode_step(count: int, seed: int = 0, width: int = 3) -> StepInputs:
    """Of `count` requests whose numbers nobody else has; their views are as the core's are."""
    random = torch.Generator().manual_seed(seed)
    numbers = torch.randint(1, 1000, (3, count), generator=random)
    lengths = torch.randint(1, 16 * width + 1, (count,), generator=random, dtype=torch.int32)
    table = torch.randint(1, 99, (count, width), generator=random, dtype=torch.int32)
    start = torch.arange(count + 1, dtype=torch.int32)
    metadata = StepMetadata(start, lengths, table, numbers[2], 1, int(lengths.max()), count)
    return StepInputs(numbers[0], numbers[1], metadata)


def prompt_step(requests: int, tokens: int, shape=None) -> StepInputs:
    each = tokens // requests
    start = torch.arange(0, tokens + 1, each, dtype=torch.int32)
    lengths = torch.full((requests,), each, dtype=torch.int32)
    table = torch.zeros((requests, 1), dtype=torch.int32)
    slots = torch.arange(tokens)
    step = StepMetadata(start, lengths, table, slots, each, each, requests if each == 1 else 0)
    return StepInputs(torch.zeros(tokens, dtype=torch.int64), slots.clone(), step)


@pytest.fixture
def host() -> Host:
    return Host()


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


def test_before_a_model_is_loaded_the_sizes_are_told(host):
    runner = CapturedRunner(host, LIMITS, Architecture.named("interpreter"))
    assert runner.report() == "decode programs for 1, 2, 4, 6 requests, when the model is loaded"


def test_closing_drops_programs_and_buffers_and_may_be_done_twice(runner):
    runner.close()
    runner.close()
    assert runner.num_compiled == 0
    inputs = decode_step(2)
    assert torch.equal(runner.run(model, inputs), forward(inputs))
