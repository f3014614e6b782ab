from dataclasses import replace

import pytest
from simulated import PROFILE, SIZE, time_model

from engine.batch import Batch, Slice
from engine.errors import UnsupportedError
from engine.platform import ShapeBuckets
from engine.simulate.cost import Work
from engine.simulate.model import Windows


def decode(*contexts: int) -> Batch:
    return Batch(slices=tuple(Slice(i, c - 1, c, True) for i, c in enumerate(contexts)))


def test_one_decode_step_is_the_roofline_worked_out_by_hand() -> None:
    model = time_model()
    # 1 GB/s, bfloat16. Linear layers: 1,001,000 weights and 10 layers of 1,000 activations.
    linear = (1_001_000 * 2 + 10 * 1_000 * 2) / 1e9
    # Output layer: its weights, one row of 100 in, one row of 2,000 float32 logits out and in.
    output = (200_000 * 2 + 100 * 2 + 2 * 2_000 * 4) / 1e9
    # Attention: 300 tokens of 2 (keys, values) x 2 heads x 25, in 10 layers; one is written.
    attention = (300 + 1) * 10 * 100 * 2 / 1e9
    expected = 0.001 + linear + output + attention
    assert model.seconds(model.work(decode(300))) == pytest.approx(expected, rel=1e-12)


def test_a_long_prompt_is_bound_by_arithmetic() -> None:
    model = time_model(profile=replace(PROFILE, flops={"bfloat16": 1e9}))
    step = Batch(slices=(Slice(1, 0, 1000, True),))
    linear = 2 * 1_000_000 * 1000 / 1e9
    pairs = 1000 * 1001 / 2
    attention = pairs * 10 * 4 * 4 * 25 / 1e9
    output = (200_000 * 2 + 100 * 2 + 2 * 2_000 * 4) / 1e9  # of one token: bound by reading
    expected = 0.001 + linear + attention + output
    assert model.seconds(model.work(step)) == pytest.approx(expected, rel=1e-12)


def test_what_is_not_hidden_adds_up() -> None:
    work = Work(8, 8, 8, 0, 0)
    hidden = time_model().seconds(work)
    bare = time_model(profile=replace(PROFILE, overlap=0.0)).seconds(work)
    arithmetic = 2 * 8 * (1_000_000 + 200_000) / 1e11
    assert bare == pytest.approx(hidden + arithmetic, rel=1e-9)


def test_shares_that_are_reached_slow_a_step_down() -> None:
    half = time_model(profile=replace(PROFILE, reached_bandwidth=0.5, reached_flops=0.5))
    whole = time_model()
    work = whole.work(decode(300, 20))
    assert half.seconds(work) - 0.001 == pytest.approx(2 * (whole.seconds(work) - 0.001))


def test_the_host_works_for_each_layer_and_each_request() -> None:
    with_host = time_model(profile=replace(PROFILE, layer_s=0.1, request_s=3.0))
    work = with_host.work(decode(5, 5))
    assert with_host.seconds(work) == pytest.approx(time_model().seconds(work) + 1.0 + 6.0)


def test_quantized_weights_are_read_in_fewer_bytes() -> None:
    work = Work(1, 0, 1, 0, 0)
    saved = time_model().seconds(work) - time_model(quantization="int4").seconds(work)
    assert saved == pytest.approx(1_000_000 * 1.5 / 1e9)


def test_several_ranks_share_the_work_and_pay_for_their_links() -> None:
    work = Work(4, 0, 4, 0, 0)
    one, two = time_model().seconds(work), time_model(ranks=2).seconds(work)
    links = 20 * 1e-5 + 20 * 4 * 100 * 2 * 2 * 0.5 / 1e8
    assert two == pytest.approx(0.001 + (one - 0.001) / 2 + links)


def test_ranks_without_a_link_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="no link"):
        time_model(profile=replace(PROFILE, link_bandwidth=0.0), ranks=2)


def test_a_dtype_without_a_rate_is_refused_with_those_there_are() -> None:
    with pytest.raises(UnsupportedError, match="no rate for bfloat16; it has float16"):
        time_model(profile=replace(PROFILE, flops={"float16": 1.0}))


def test_few_tokens_read_few_experts() -> None:
    size = replace(SIZE, expert=1_000_000, experts=8, active_experts=2)
    model, without = time_model(size), time_model()
    for tokens, read in ((1, 2.0), (2, 8 * (1 - 0.75**2))):
        work = Work(tokens, 0, tokens, 0, 0)
        more = model.seconds(work) - without.seconds(work)
        assert more == pytest.approx(read * 1_000_000 * 2 / 1e9)


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (0, 40), (30, 75), (200, 201), (10, 90)])
def test_windows_are_counted_key_by_key(start: int, stop: int) -> None:
    windows = (Windows(None, 3), Windows(50, 7))
    model = time_model(replace(SIZE, windows=windows))
    work = model.work(Batch(slices=(Slice(1, start, stop, True),)))
    pairs = read = 0
    for window, layers in ((10**9, 3), (50, 7)):
        seen = [range(max(0, q + 1 - window), q + 1) for q in range(start, stop)]
        pairs += layers * sum(map(len, seen))
        read += layers * len(set().union(*seen))
    assert (work.pairs, work.kv_read) == (pairs, read)


def test_padding_is_computed_too() -> None:
    buckets = ShapeBuckets(tokens=(64,), requests=(4,), decodes=(4, 8), blocks=(2, 8))
    model = time_model(buckets=buckets)
    assert model.work(decode(20, 17, 5)) == Work(4, 4, 4, 4 * 2 * 16 * 10, 4 * 2 * 16 * 10)
    assert model.work(decode(33)) == Work(4, 4, 4, 4 * 8 * 16 * 10, 4 * 8 * 16 * 10)
    prompt = model.work(Batch(slices=(Slice(1, 0, 30, True),)))
    assert prompt == Work(64, 4, 4, 4 * 2 * 16 * 10, 64 * 2 * 16 * 10)


def test_a_step_that_no_bucket_holds_is_an_error() -> None:
    buckets = ShapeBuckets(tokens=(64,), requests=(4,), decodes=(4,), blocks=(2,))
    with pytest.raises(UnsupportedError, match="no bucket for a step of 1 tokens"):
        time_model(buckets=buckets).work(decode(33))


@pytest.mark.parametrize(
    "model",
    [
        time_model(),
        time_model(replace(SIZE, windows=(Windows(None, 3), Windows(50, 7)))),
        time_model(
            buckets=ShapeBuckets(tokens=(64,), requests=(4,), decodes=(4,), blocks=(4, 8, 32))
        ),
    ],
    ids=["plain", "windows", "padded"],
)
def test_many_decode_steps_take_exactly_what_each_of_them_takes(model: object) -> None:
    contexts = [3, 60, 111]
    together = model.decode_seconds(contexts, 60)  # type: ignore[attr-defined]
    for later, seconds in enumerate(together):
        step = decode(*(one + later for one in contexts))
        assert seconds == model.seconds(model.work(step))  # type: ignore[attr-defined]
