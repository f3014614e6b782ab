"""The device is one of torch's, with rules of its own."""

import gc

import pytest
import torch

from engine_sim.errors import DtypeError, MixedDevicesError, SimError, SynchronizationError

MIB = 2**20


@pytest.fixture
def chip(sim):
    gc.collect()  # what errors of other tests hold
    return sim("sim:6,memory=8MiB").chip


def zeros(*shape, dtype=torch.float32):
    return torch.zeros(*shape, dtype=dtype, device="sim:6")


def test_numbers_are_those_of_the_host(chip):
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(7, 7, generator=generator) for _ in range(2))
    here, there = a.to("sim:6"), b.to("sim:6")
    both = torch.cat([here @ there, here.softmax(-1)], 1)[:, 2:].sum(0)
    assert both.device == torch.device("sim", 6)
    assert torch.equal(both.cpu(), torch.cat([a @ b, a.softmax(-1)], 1)[:, 2:].sum(0))


def test_what_is_written_through_a_view_is_seen_in_the_whole(chip):
    whole = zeros(4, 2)
    whole.view(-1)[3:5].fill_(9)
    whole[torch.tensor([0]).to("sim:6")] = torch.ones(1, 2).to("sim:6")
    assert whole.tolist() == [[1, 1], [0, 9], [9, 0], [0, 0]]


def test_a_tensor_made_from_numbers_knows_its_device(chip):
    assert torch.tensor([1.5, 2.0], device="sim:6").tolist() == [1.5, 2.0]
    assert torch.arange(3, device="sim:6").device.index == 6
    assert torch.full((2,), 7.0, dtype=torch.bfloat16, device="sim:6").cpu().tolist() == [7, 7]


def test_inference_mode_changes_nothing(chip):
    weight, bias = torch.ones(3, 2).to("sim:6"), torch.ones(3).to("sim:6")
    with torch.inference_mode():
        inside = torch.nn.functional.linear(zeros(4, 2), weight, bias).unflatten(0, (2, 2))
    assert inside.shape == (2, 2, 3)
    assert bool((inside.cpu() == 1).all())


def test_books_count_every_byte_and_give_it_back(chip):
    assert chip.books.used == 0
    chip.books.peak = 0
    one = zeros(MIB, dtype=torch.uint8)
    view = one.view(2, -1)[1]
    two = one + one
    assert chip.books.used == 2 * MIB
    del one
    assert chip.books.used == 2 * MIB, "the view still holds the first"
    del view
    assert chip.books.used == MIB
    del two
    assert chip.books.used == 0, "without the garbage collector's help"
    assert chip.books.peak == 2 * MIB


def test_what_an_operation_needs_for_a_moment_is_in_the_peak(sim):
    platform = sim("sim:6")
    with platform.memory().measure():
        (zeros(MIB, dtype=torch.uint8) + 1).sum()
        peak = platform.memory().snapshot().peak
    assert 2 * MIB <= peak < 2 * MIB + 4096


def test_running_out_of_memory_says_what_was_asked_and_what_is_free(chip):
    kept = zeros(6 * MIB, dtype=torch.uint8)
    with pytest.raises(torch.OutOfMemoryError, match=r"tried to allocate 3,145,728 .* 2,097,152"):
        zeros(3 * MIB, dtype=torch.uint8)
    with pytest.raises(torch.OutOfMemoryError, match="tried to allocate 6,291,456"):
        kept + 1
    assert chip.books.used == 6 * MIB, "what failed is not in the books"
    assert zeros(2 * MIB, dtype=torch.uint8).nbytes == chip.books.limit - 6 * MIB


def test_more_than_the_host_has_is_refused_before_it_is_tried(chip):
    with pytest.raises(torch.OutOfMemoryError, match="sim:6"):
        torch.empty(2**60, device="sim:6")


def test_a_dtype_that_the_device_lacks_is_refused_by_name(chip):
    for make in (
        lambda: zeros(2, dtype=torch.float64),
        lambda: zeros(2).double(),
        lambda: torch.zeros(2, dtype=torch.float64).to("sim:6"),
        lambda: torch.zeros(2, dtype=torch.complex64).to("sim:6"),
    ):
        with pytest.raises(DtypeError, match=r"has no torch\.(float64|complex64); it has float32"):
            make()


def test_operands_of_different_devices_are_refused(sim, chip):
    sim("sim:7")
    with pytest.raises(MixedDevicesError, match="found sim:6 and cpu"):
        zeros(2) + torch.zeros(2)
    with pytest.raises(MixedDevicesError, match="found sim:6 and sim:7"):
        zeros(2) + torch.zeros(2, device="sim:7")
    assert (zeros(2) + torch.tensor(1.0)).tolist() == [1, 1], "a number may come from the host"


def test_a_tensor_goes_from_one_device_to_another(sim, chip):
    other = sim("sim:7").chip
    before = chip.counts.between_devices + other.counts.between_devices
    there = torch.ones(3).to("sim:6").to("sim:7")
    assert there.device.index == 7
    assert there.tolist() == [1, 1, 1]
    assert chip.counts.between_devices + other.counts.between_devices == before + 1


def test_operations_and_copies_are_counted(chip):
    counts = chip.counts
    before = (counts.operations, counts.to_device, counts.to_host, counts.synchronizations)
    total = torch.ones(3).to("sim:6").sum()
    total.item()
    total.cpu()
    after = (counts.operations, counts.to_device, counts.to_host, counts.synchronizations)
    gained = [new - old for new, old in zip(after, before, strict=True)]
    # Room for the copy, sum and item; a copy each way; item and the copy to the host wait.
    assert gained == [3, 1, 1, 2]
    assert counts.by_name["aten::sum"] >= 1


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.tolist(),
        lambda x: x.sum().item(),
        lambda x: bool(x[0] > 0),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.index_put_((x > 0,), torch.tensor(2.0).to("sim:6")),
        lambda x: x.cpu(),
        lambda x: torch.zeros(3).copy_(x),
        lambda x: torch.sim.synchronize(6),
    ],
)
def test_whoever_waits_where_nobody_may_is_told(chip, wait):
    x = torch.ones(3).to("sim:6")
    wait(x)
    with chip.no_waiting(), pytest.raises(SynchronizationError, match="waits for the device"):
        wait(x)


def test_what_does_not_wait_is_let_through(chip):
    x, places = torch.ones(3).to("sim:6"), torch.tensor([2, 0]).to("sim:6")
    with chip.no_waiting():
        x[places] += 1
        torch.ones(3).to("sim:6", non_blocking=True)
        there = x.to("cpu", non_blocking=True)
    assert there.tolist() == [2, 1, 2]


def test_a_tensor_keeps_its_shape(chip):
    with pytest.raises(SimError, match="another shape"):
        zeros(2, 3).t_()


def test_torch_knows_the_device(chip):
    assert torch.sim.device_count() == 8
    held = zeros(MIB, dtype=torch.uint8)
    assert torch.sim.mem_get_info(6) == (7 * MIB, 8 * MIB)
    assert torch.sim.memory_allocated(6) == held.nbytes
    assert torch.sim.max_memory_allocated(6) >= held.nbytes
