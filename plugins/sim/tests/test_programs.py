"""Static shapes: what warm-up made runs, and nothing else."""

import pytest
import torch

from engine.platform import ShapeBuckets, StepInputs, StepLimits, StepMetadata
from engine_sim.errors import ProgramError
from engine_sim.programs import ProgramRunner

LIMITS = StepLimits(max_tokens=64, max_requests=4, max_model_len=512, block_size=16)


def step(num_requests, num_tokens, shape=None):
    """A step of one request a row; its blocks are as many as the shape says, or one."""
    blocks = shape.blocks if shape else 1

    def on_device(*size, dtype=torch.int32):
        return torch.zeros(*size, dtype=dtype).to("sim:6")

    metadata = StepMetadata(
        query_start=on_device(num_requests + 1),
        lengths=on_device(num_requests),
        block_table=on_device(num_requests, blocks),
        slots=on_device(num_tokens, dtype=torch.int64),
        max_query=1,
        max_length=1,
        num_decodes=0,
    )
    ids = on_device(num_tokens, dtype=torch.int64)
    return StepInputs(ids, ids.clone(), metadata)


def forward(inputs):
    return inputs.input_ids.float()[:, None] + inputs.positions.float()[:, None]


@pytest.fixture
def chip(sim):
    return sim("sim:6").chip


def warm(chip, missing="error"):
    buckets = ShapeBuckets(tokens=(8,), requests=(4,), decodes=(2, 4), blocks=(1,), missing=missing)
    runner = ProgramRunner(chip, buckets)
    runner.warm_up(forward, step)
    return runner


def test_warm_up_makes_a_program_of_each_shape(chip):
    runner = warm(chip)
    assert runner.num_compiled == 3
    for tokens, requests in ((8, 4), (4, 4), (2, 2)):
        assert runner.run(forward, step(requests, tokens)).shape == (tokens, 1)
    assert runner.num_compiled == 3


def test_a_shape_without_a_program_is_refused_with_those_there_are(chip):
    with pytest.raises(ProgramError, match=r"no program for 3 tokens of 3 .* it has: 8 tokens of"):
        warm(chip).run(forward, step(3, 3))


def test_an_operation_that_was_not_recorded_is_refused_with_its_shapes(chip):
    def other(inputs):
        return forward(inputs) * inputs.positions.float()

    with pytest.raises(ProgramError, match=r"aten::mul.Tensor.*\(8, 1, 'float32'\)"):
        warm(chip).run(other, step(4, 8))


def test_a_number_that_differs_from_step_to_step_is_refused(chip):
    """A program would go on with the number that it was made with."""
    number = 1.0

    def changing(inputs):
        return forward(inputs) + number

    runner = ProgramRunner(
        chip, ShapeBuckets(tokens=(8,), requests=(4,), decodes=(4,), blocks=(1,))
    )
    runner.warm_up(changing, step)
    runner.run(changing, step(4, 8))
    number = 2.0
    with pytest.raises(ProgramError, match=r"aten::add.Tensor"):
        runner.run(changing, step(4, 8))


def test_where_it_may_compile_a_new_shape_is_made_once_and_counted(chip):
    runner = warm(chip, missing="compile")
    for _ in range(2):
        runner.run(forward, step(3, 3))
    assert runner.num_compiled == 4


def test_logits_of_each_shape_are_a_program(chip):
    runner, hidden = warm(chip), torch.ones(8, 1).to("sim:6")
    rows = torch.tensor([7, 0]).to("sim:6")
    for _ in range(2):
        assert runner.project(lambda x: x + 1, hidden, rows).tolist() == [[2], [2]]
    assert runner.num_compiled == 4
    with pytest.raises(ProgramError, match=r"aten::mul"):
        runner.project(lambda x: x * 2, hidden, rows)


def test_a_static_platform_declares_shapes_up_to_the_limits(sim):
    platform = sim("sim:6,static")
    assert platform.capabilities.static_shapes
    assert platform.capabilities.sampling == "host"
    buckets = platform.buckets(LIMITS)
    assert buckets.missing == "error"
    assert buckets.fit(64, 4, 32, decode=False) is not None
    assert len(buckets.shapes()) < 40
    assert sim("sim:6,compile").buckets(LIMITS).missing == "compile"
    assert sim("sim:6").buckets(LIMITS) is None


def test_nobody_waits_for_the_device_inside_a_program(sim):
    from engine_sim.errors import SynchronizationError

    for device in ("sim:6,static", "sim:6,nosync"):
        platform = sim(device)
        platform.buckets(LIMITS)
        with pytest.raises(SynchronizationError, match="inside a step"):
            platform.graphs().run(lambda inputs: inputs.input_ids.tolist(), step(4, 4))
    assert sim("sim:6").graphs().run(lambda inputs: inputs.input_ids.tolist(), step(1, 1)) == [0]
