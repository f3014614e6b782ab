"""A recorded forward pass does what the model does, or is refused."""

from types import SimpleNamespace

import pytest
import torch

from engine.platform import OpTable, StepInputs
from engine_cpu import native

if reason := native.available():
    pytest.skip(reason, allow_module_level=True)

from engine_cpu.native import memory, pointwise
from engine_cpu.native.linear import PackedLinear
from engine_cpu.native.memory import Arena, NotRecordable
from engine_cpu.native.tape import Tape, TapeRunner

WIDTH = 48


def inputs(ids: list[int], num_decodes: int = 0) -> StepInputs:
    metadata = SimpleNamespace(num_decodes=num_decodes)
    return StepInputs(torch.tensor(ids), torch.arange(len(ids)), metadata)


class Model:
    """Look-up, then layers of a norm, a linear layer and a sum."""

    def __init__(self) -> None:
        torch.manual_seed(5)
        self.table = torch.randn(19, WIDTH)
        self.norm = torch.randn(WIDTH)
        self.layers = [PackedLinear(torch.randn(WIDTH, WIDTH), None) for _ in range(5)]
        self.between = lambda x: x

    def __call__(self, step: StepInputs) -> torch.Tensor:
        residual = pointwise.embedding(step.input_ids, self.table)
        x = pointwise.rms_norm(residual, self.norm, 1e-5)
        for layer in self.layers:
            x = self.between(layer(x).view(-1, 2, WIDTH // 2).flatten(1))
            x, residual = pointwise.add_rms_norm(x, residual, self.norm, 1e-5)
        return x


def test_it_gives_what_the_model_gives_for_every_number_of_tokens() -> None:
    model = Model()
    tape = Tape(model, inputs([0]), 10)
    for ids in ([3], [1, 2, 3], [18, 0, 5, 5, 7, 9, 11, 2, 1, 0]):
        assert torch.equal(tape.run(inputs(ids)), model(inputs(ids)))


@pytest.mark.parametrize(
    ("between", "named"),
    [
        (lambda x: x * 2, "aten.mul"),
        (lambda x: x.add_(1), "aten.add_"),
        (lambda x: x.float().clone(), "aten.clone"),
        (lambda x: x[: int(x.sum())], "aten.sum"),
    ],
)
def test_a_model_that_computes_with_torch_is_run_as_it_is_written(between, named: str) -> None:
    model = Model()
    model.between = between
    with pytest.raises(NotRecordable, match=named):
        Tape(model, inputs([0]), 10)
    runner = TapeRunner(10, 10)
    runner.warm_up(model, lambda requests, tokens: inputs([0] * tokens))
    assert runner.reason is not None
    assert named in runner.reason
    assert torch.equal(runner.run(model, inputs([4, 5])), model(inputs([4, 5])))


def test_more_tokens_than_the_tape_has_room_for_are_computed_without_it() -> None:
    model, runner = Model(), TapeRunner(4, 4)
    runner.warm_up(model, lambda requests, tokens: inputs([0] * tokens))
    assert runner.reason is None
    for ids in ([1, 2, 3, 4], [1, 2, 3, 4, 5]):
        assert torch.equal(runner.run(model, inputs(ids)), model(inputs(ids)))


class Output:
    """The last layer, and how often it was called."""

    def __init__(self, *, scale: float = 1.0) -> None:
        torch.manual_seed(6)
        self.layer = PackedLinear(torch.randn(19, WIDTH), None)
        self.scale, self.calls = scale, 0

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        logits = self.layer.in_float32(hidden)
        return logits if self.scale == 1 else logits * self.scale


def recorded(model: Model, output: Output) -> TapeRunner:
    runner = TapeRunner(max_tokens=8, max_requests=3)
    runner.will_project(output, vocab_size=19)
    assert runner.reserve(0) == 3 * 19 * 4
    runner.warm_up(model, lambda requests, tokens: inputs([0] * tokens))
    assert runner.reason is None
    return runner


def test_a_step_of_newest_tokens_ends_with_their_logits() -> None:
    model, output = Model(), Output()
    runner = recorded(model, output)
    assert "with the logits" in runner.report()
    for ids in ([7], [1, 2, 3], [4, 5]):
        output.calls = 0
        hidden = runner.run(model, inputs(ids, num_decodes=len(ids)))
        assert torch.equal(hidden, model(inputs(ids)))
        logits = runner.project_all(output, hidden)
        assert output.calls == 0, "the tape made them"
        assert torch.equal(logits, output(hidden))


def test_other_steps_leave_the_logits_to_who_wants_them() -> None:
    model, output = Model(), Output()
    runner = recorded(model, output)
    runner.run(model, inputs([1, 2], num_decodes=2))
    for ids, num_decodes in (([7, 8], 1), ([7], 0), ([1, 2, 3, 4], 4), ([3] * 9, 9)):
        output.calls = 0
        hidden = runner.run(model, inputs(ids, num_decodes))
        assert torch.equal(hidden, model(inputs(ids)))
        assert torch.equal(runner.project_all(output, hidden), output.layer.in_float32(hidden))
        assert output.calls == 1, f"{ids} with {num_decodes} newest tokens"


def test_logits_that_torch_has_a_part_in_are_made_apart() -> None:
    model, output = Model(), Output(scale=0.5)
    runner = recorded(model, output)
    assert "logits another" in runner.report()
    assert "aten.mul" in runner.report()
    hidden = runner.run(model, inputs([1, 2], num_decodes=2))
    assert torch.equal(hidden, model(inputs([1, 2])))
    assert torch.equal(runner.project_all(output, hidden), output(hidden))


def test_memory_of_dead_results_is_used_again_in_one_recording() -> None:
    arena = Arena()
    with memory.record(arena):
        kept = memory.empty((100, 10), torch.float32)
        for _ in range(50):
            passing = memory.empty((100, 10), torch.float32)
            view = passing.view(10, 100)[3:]
            del passing
            other = memory.empty((100, 10), torch.float32)
            assert other.data_ptr() not in (kept.data_ptr(), view.untyped_storage().data_ptr())
            del view, other
    assert arena.num_bytes == 3 * 4000
    assert not memory.recording()


def test_the_table_has_them_for_what_they_serve() -> None:
    table = OpTable()
    pointwise.register(table)
    facts = {"device": "cpu:0", "width": 8}
    assert table.choose("rms_norm", dtype="bfloat16", **facts) is pointwise.rms_norm
    with pytest.raises(LookupError):
        table.choose("rms_norm", dtype="float64", **facts)
