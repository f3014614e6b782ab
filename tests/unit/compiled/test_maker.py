"""Programs of functions of tensors."""

import pytest
import torch

from engine.compiled import ProgramMaker


def _double(x):
    return x * 2


def test_each_program_is_one_graph_counted_in_one_place():
    maker = ProgramMaker("eager")
    programs = [maker.make(_double) for _ in range(12)]
    for size, program in enumerate(programs, start=1):
        for value in (1.0, 3.0):
            assert program(torch.full((size,), value)).tolist() == [2 * value] * size
    assert maker.num_compiled == 12


@pytest.mark.parametrize("when", ["compiling", "running"])
def test_a_program_without_room_is_out_of_memory_whoever_says_so(when):
    def fail(*_):
        raise torch.OutOfMemoryError("no room for it")

    def backend(graph, examples):
        return fail() if when == "compiling" else fail

    with pytest.raises(torch.OutOfMemoryError, match="no room for it"):
        ProgramMaker(backend).make(_double)(torch.ones(2))


def test_other_failures_of_a_compiler_are_told_as_they_are():
    def backend(graph, examples):
        raise ValueError("cannot")

    with pytest.raises(Exception, match="cannot") as caught:
        ProgramMaker(backend).make(_double)(torch.ones(2))
    assert "BackendCompilerFailed" in type(caught.value).__name__
