"""The stand-in for graphs is as strict as they are, or what is proved with it would be nothing."""

import pytest
import torch
from recorded import Unwaiting, record

from engine.compiled import GroupCommunicator
from engine.platform import StepInputs, StepLimits, StepMetadata
from engine_triton.architecture import Architecture
from engine_triton.staging import StepBuffers


def test_a_replay_reads_what_is_in_memory_now_and_writes_where_it_wrote():
    x = torch.tensor([1.0, 2.0])
    made = record(lambda: (x * 2).view(2, 1)[1:].add_(1)).recording
    where = made.result.data_ptr()
    x.copy_(torch.tensor([0.0, 10.0]))
    made.replay()
    assert made.result.tolist() == [[21.0]]
    assert made.result.data_ptr() == where


def test_a_replay_runs_none_of_the_work_s_own_code():
    factor = 2.0
    x = torch.ones(1)
    made = record(lambda: x * factor).recording
    factor = 3.0
    made.replay()
    assert made.result.tolist() == [2.0]


def test_kernels_are_launched_again_with_their_arguments():
    limits = StepLimits(max_tokens=8, max_requests=2, max_model_len=16, block_size=16)
    buffers = StepBuffers(limits, 2, "cpu", Architecture.named("interpreter"))
    numbers = torch.tensor([[5], [6], [7]])
    start = torch.tensor([0, 1], dtype=torch.int32)
    lengths = torch.tensor([4], dtype=torch.int32)
    table = torch.tensor([[3]], dtype=torch.int32)
    step = StepInputs(
        numbers[0], numbers[1], StepMetadata(start, lengths, table, numbers[2], 1, 4, 1)
    )

    def work():
        buffers.fill(step, 2)
        return buffers.step(2).input_ids

    before = buffers.step(2).input_ids.clone()
    made = record(work)
    assert made.tape.num_kernels == 1
    assert torch.equal(buffers.step(2).input_ids, before)  # recorded, and not run
    numbers[0] = 9
    made.recording.replay()
    assert made.recording.result.tolist() == [9, 0]
    assert made.num_replays == 1


def test_collectives_are_done_again(tmp_path):
    group = GroupCommunicator(f"file://{tmp_path}/meet", 0, (0,))
    x = torch.tensor([1.0])
    made = record(lambda: group.all_gather(x)).recording
    x.fill_(4.0)
    made.replay()
    assert made.result.tolist() == [4.0]
    group.close()


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: x.tolist(),
        lambda x: float(x[0]),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.numpy(),
        lambda x: x.cpu(),
        lambda x: x.unique(),
        lambda x: torch.equal(x, x),
        lambda x: bool(x.any()),
    ],
)
def test_what_waits_for_the_device_is_an_error(wait):
    x = torch.arange(3.0)
    with pytest.raises(RuntimeError, match="waits for the device"), Unwaiting().watching():
        wait(x)
