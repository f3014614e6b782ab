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


def inputs(ids: list[int]) -> StepInputs:
    return StepInputs(torch.tensor(ids), torch.arange(len(ids)), SimpleNamespace())


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
    runner = TapeRunner(10)
    runner.warm_up(model, lambda requests, tokens: inputs([0] * tokens))
    assert runner.reason is not None
    assert named in runner.reason
    assert torch.equal(runner.run(model, inputs([4, 5])), model(inputs([4, 5])))


def test_more_tokens_than_the_tape_has_room_for_are_computed_without_it() -> None:
    model, runner = Model(), TapeRunner(4)
    runner.warm_up(model, lambda requests, tokens: inputs([0] * tokens))
    assert runner.reason is None
    for ids in ([1, 2, 3, 4], [1, 2, 3, 4, 5]):
        assert torch.equal(runner.run(model, inputs(ids)), model(inputs(ids)))


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
