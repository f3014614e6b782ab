"""Simulated time is what the data sheet's numbers say, worked out here by hand."""

import pytest
import torch

from engine.platform import DeviceProfile

PROFILE = DeviceProfile(
    name="test",
    memory_bytes=2**30,
    bandwidth=1000.0,  # bytes/s
    reached_bandwidth=0.5,
    flops={"float32": 200.0, "bfloat16": 800.0},
    reached_flops=0.25,
    launch_s=7.0,
    link_bandwidth=10.0,
    link_latency_s=0.5,
)


@pytest.fixture
def clock(sim):
    clock = sim("sim:6").chip.clock
    clock.profile = PROFILE
    return clock


def took_s(clock, work):
    before = clock.total_s
    work()
    return clock.total_s - before


def on_device(*shape, dtype=torch.float32):
    return torch.ones(*shape, dtype=dtype).to("sim:6")


def test_an_addition_takes_as_long_as_its_bytes(clock):
    a, b = on_device(5, 3), on_device(5, 3)
    assert took_s(clock, lambda: a + b) == pytest.approx(3 * 15 * 4 / 500)


def test_a_large_product_takes_as_long_as_its_arithmetic(clock):
    a, b = on_device(10, 20), on_device(20, 30)
    flops = 2 * 10 * 20 * 30
    assert took_s(clock, lambda: a @ b) == pytest.approx(flops / (200 * 0.25))
    weight = on_device(30, 20)
    with torch.inference_mode():
        linear = took_s(clock, lambda: torch.nn.functional.linear(a, weight))
    assert linear == pytest.approx(flops / (200 * 0.25))


def test_arithmetic_goes_at_the_rate_of_its_dtype(clock):
    a, b = (on_device(*shape, dtype=torch.bfloat16) for shape in ((10, 200), (200, 30)))
    assert took_s(clock, lambda: a @ b) == pytest.approx(2 * 10 * 200 * 30 / (800 * 0.25))


def test_views_take_no_time(clock):
    a = on_device(4, 6)
    assert took_s(clock, lambda: a.view(2, 12)[:, 3:].t()) == 0


def test_reading_some_rows_costs_those_rows_alone(clock):
    table, rows = on_device(1000, 4), torch.tensor([3, 5]).to("sim:6")
    assert took_s(clock, lambda: table.index_select(0, rows)) == pytest.approx(2 * 32 / 500)
    new = on_device(2, 4)
    assert took_s(clock, lambda: table.index_copy_(0, rows, new)) == pytest.approx(2 * 32 / 500)


def test_attention_costs_the_tokens_that_it_reads(clock, sim):
    from engine.platform import AttentionSpec, StepMetadata

    spec = AttentionSpec(
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        block_size=16,
        dtype="float32",
        kv_dtype="float32",
        scale=1.0,
    )
    backend = sim("sim:6").attention(spec)
    clock.profile = PROFILE
    cache = backend.allocate(100)
    numbers = {
        "query_start": torch.tensor([0, 1, 4], dtype=torch.int32),
        "lengths": torch.tensor([30, 3], dtype=torch.int32),
        "block_table": torch.tensor([[5, 6], [7, 0]], dtype=torch.int32),
        "slots": torch.tensor([6 * 16 + 13, 7 * 16, 7 * 16 + 1, 7 * 16 + 2]),
    }
    step = StepMetadata(
        **{name: one.to("sim:6") for name, one in numbers.items()},
        max_query=3,
        max_length=30,
        num_decodes=1,
    )
    q, k, v = on_device(4, 4, 8), on_device(4, 2, 8), on_device(4, 2, 8)
    took = took_s(clock, lambda: backend.forward(q, k, v, cache, backend.plan(step)))
    one = 2 * 2 * 8 * 4  # keys and values of one token
    moved = 2 * q.nbytes + 2 * 4 * one + (30 + 3) * one
    flops = 4 * 4 * 8 * (1 * 30 + 3 * 3)
    assert took == pytest.approx(max(moved / 500, flops / 50))


def test_a_step_lasts_from_its_launch_to_the_next(clock):
    clock.launch()
    clock.operate(500, 0, "float32")
    assert clock.step_s == pytest.approx(7 + 1)
    clock.launch()
    assert clock.step_s == pytest.approx(7)


def test_a_collective_takes_its_latency_and_its_bytes_over_the_link(clock):
    assert took_s(clock, lambda: clock.transfer(25)) == pytest.approx(0.5 + 2.5)
