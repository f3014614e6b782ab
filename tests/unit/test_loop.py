"""The control plane over the null runner: the token after n is n + 1, so every answer is known.

The null runner remembers what each KV block contains and fails a step that would read anything
but the request's own tokens, so these tests check the cache's logic too.
"""

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config import EngineConfig
from engine.errors import CapacityError, EngineDeadError, RequestError
from engine.loop import EngineLoop
from engine.params import SamplingParams
from engine.platform import Capabilities
from engine.request import Finish, Submission
from engine.testing.null import NullRunner

CAREFUL = Capabilities()
CAPABLE = Capabilities(mixed_batches=True, chunked_prefill=True, prefix_reuse=True, overlap=True)


def build(num_blocks=8, block_size=16, max_model_len=128, capabilities=CAPABLE, **config):
    runner = config.pop("runner", None) or NullRunner(num_blocks, block_size=block_size)
    return EngineLoop(
        EngineConfig(**config),
        runner,
        num_blocks=runner.load(),
        block_size=block_size,
        max_model_len=max_model_len,
        capabilities=capabilities,
        eos_token_ids=(1_000_000,),
    )


@pytest.fixture(params=[False, True], ids=["in turn", "overlapped"])
def make(request):
    def make(*arguments, **config):
        return build(*arguments, overlap=request.param, **config)

    return make


def ask(name, length=20, *, first=0, priority=0, salt="", **params):
    prompt = tuple(range(first, first + length))
    return Submission(str(name), prompt, SamplingParams(**params), priority, salt)


def outputs(deltas):
    """{(id, index): all its tokens}"""
    found = {}
    for delta in deltas:
        found.setdefault((delta.id, delta.index), []).extend(delta.tokens)
    return found


def finishes(deltas):
    return {(delta.id, delta.index): delta.finish for delta in deltas if delta.finish}


def assert_all_returned(loop):
    pool = loop.scheduler.allocator.pool
    assert pool.num_free == pool.num_blocks
    assert [pool.count(block) for block in range(pool.num_blocks)] == [0] * pool.num_blocks
    assert loop.idle


def test_counts_up(make):
    loop = make()
    loop.submit(ask("a", max_tokens=5))
    deltas = loop.run_until_idle()
    assert outputs(deltas) == {("a", 0): [20, 21, 22, 23, 24]}
    assert finishes(deltas) == {("a", 0): Finish.LENGTH}
    assert_all_returned(loop)


def test_stops_at_the_stop_token_and_says_no_more(make):
    loop = make()
    loop.submit(ask("a", max_tokens=50, stop_token_ids=(22,)))
    deltas = loop.run_until_idle()
    assert outputs(deltas) == {("a", 0): [20, 21, 22]}
    assert deltas[-1].finish is Finish.STOP
    assert deltas[-1].stop_id == 22
    assert_all_returned(loop)


def test_the_end_of_sequence_stops_a_request_unless_it_ignores_it(make):
    loop = make()
    loop.eos_token_ids = (23,)
    loop.submit(ask("a", max_tokens=6))
    loop.submit(ask("b", max_tokens=6, ignore_eos=True))
    found = outputs(loop.run_until_idle())
    assert found == {("a", 0): [20, 21, 22, 23], ("b", 0): [20, 21, 22, 23, 24, 25]}


def test_a_stop_token_before_min_tokens_does_not_stop(make):
    loop = make()
    loop.submit(ask("a", max_tokens=9, min_tokens=4, stop_token_ids=(22, 25)))
    assert outputs(loop.run_until_idle()) == {("a", 0): [20, 21, 22, 23, 24, 25]}


def test_without_max_tokens_a_request_runs_to_the_end_of_the_context(make):
    loop = make(max_model_len=30)
    loop.submit(ask("a", max_tokens=None))
    deltas = loop.run_until_idle()
    assert outputs(deltas) == {("a", 0): list(range(20, 30))}
    assert deltas[-1].finish is Finish.LENGTH


def test_long_prompts_are_computed_in_chunks():
    loop = build(max_batch_tokens=8)
    loop.submit(ask("a", length=20, max_tokens=2))
    assert outputs(loop.run_until_idle()) == {("a", 0): [20, 21]}
    assert [batch.num_tokens for batch in loop.runner.steps] == [8, 8, 4, 1]


def test_a_platform_that_cannot_cut_prompts_gets_them_whole():
    loop = build(max_batch_tokens=8, capabilities=replace(CAPABLE, chunked_prefill=False))
    loop.submit(ask("a", length=20, max_tokens=2))
    loop.submit(ask("b", length=30, first=50, max_tokens=2))
    assert outputs(loop.run_until_idle()) == {("a", 0): [20, 21], ("b", 0): [80, 81]}
    assert all(
        part.start == 0 for step in loop.runner.steps for part in step.slices if part.stop > 32
    )


def test_a_platform_without_mixed_batches_never_sees_prefill_and_decode_together(make):
    loop = make(max_batch_tokens=8, capabilities=replace(CAPABLE, mixed_batches=False))
    for name in range(4):
        loop.submit(ask(name, length=12, first=100 * name, max_tokens=5))
        loop.step()
    found = outputs(loop.run_until_idle())
    assert len(found) == 4
    for batch in loop.runner.steps:
        sizes = {part.stop - part.start > 1 for part in batch.slices}
        assert len(sizes) == 1, batch


def test_a_prompt_that_fills_the_context_is_refused_with_the_words_clients_look_for(make):
    loop = make(max_model_len=20)
    with pytest.raises(RequestError, match="maximum context length is 20 tokens") as error:
        loop.submit(ask("a", length=20))
    assert error.value.parameter == "prompt"


def test_an_empty_prompt_is_refused(make):
    with pytest.raises(RequestError, match="at least one token"):
        make().submit(ask("a", length=0))


@pytest.mark.parametrize(
    "wrong",
    [{"first": 90}, {"first": -1}, {"allowed_token_ids": (100,)}, {"logit_bias": {-1: 1.0}}],
)
def test_a_token_that_the_model_does_not_have_is_refused(make, wrong):
    loop = make()
    loop.vocab_size = 100
    with pytest.raises(RequestError, match="0 to 99"):
        loop.submit(ask("a", **wrong))
    loop.submit(ask("b", first=70, max_tokens=2))
    assert outputs(loop.run_until_idle()) == {("b", 0): [90, 91]}


def test_what_can_never_fit_is_refused_at_once_and_the_rest_goes_on(make):
    loop = make(num_blocks=4)
    loop.submit(ask("a", max_tokens=3))
    with pytest.raises(CapacityError, match="only 64"):
        loop.submit(ask("b", length=20, max_tokens=60))
    assert outputs(loop.run_until_idle()) == {("a", 0): [20, 21, 22]}


def test_lower_priority_numbers_go_first(make):
    loop = make(max_requests=1)
    for name, priority in (("late", 5), ("soon", -1), ("normal", 0)):
        loop.submit(ask(name, priority=priority, max_tokens=1))
    order = [delta.id for delta in loop.run_until_idle() if delta.finish]
    assert order == ["soon", "normal", "late"]


def test_equal_priorities_go_in_order_of_arrival(make):
    loop = make(max_requests=1)
    for name in "abc":
        loop.submit(ask(name, max_tokens=1))
    assert [delta.id for delta in loop.run_until_idle()] == ["a", "b", "c"]


def test_when_blocks_run_out_the_lowest_rank_is_preempted_and_still_right(make):
    loop = make(num_blocks=6, block_size=4, max_model_len=24)
    loop.submit(ask("low", length=6, priority=1, max_tokens=12))
    deltas = loop.step()
    loop.submit(ask("high", length=6, first=40, max_tokens=12))
    deltas += loop.run_until_idle()
    assert outputs(deltas) == {
        ("low", 0): list(range(6, 18)),
        ("high", 0): list(range(46, 58)),
    }
    preemptions = {d.id: d.summary.num_preemptions for d in deltas if d.summary}
    assert preemptions["low"] > 0
    assert preemptions["high"] == 0
    assert loop.stats.num_preemptions == preemptions["low"]
    assert_all_returned(loop)


def test_an_aborted_request_says_so_once_and_gives_its_blocks_back(make):
    loop = make()
    loop.submit(ask("a", max_tokens=100))
    loop.submit(ask("b", max_tokens=4))
    for _ in range(3):
        loop.step()
    [delta] = loop.abort("a")
    assert delta.finish is Finish.ABORT
    assert loop.abort("a") == []
    rest = loop.run_until_idle()
    assert {d.id for d in rest} == {"b"}
    assert_all_returned(loop)


def test_aborting_what_waits_or_what_nobody_knows_is_harmless(make):
    loop = make(max_requests=1)
    loop.submit(ask("a", max_tokens=3))
    loop.submit(ask("b", max_tokens=3))
    loop.step()
    assert [d.finish for d in loop.abort("b")] == [Finish.ABORT]
    assert loop.abort("nobody") == []
    assert outputs(loop.run_until_idle())
    assert_all_returned(loop)


def test_an_equal_prefix_is_computed_once(make):
    loop = make(num_blocks=20)
    loop.submit(ask("a", length=40, max_tokens=2))
    first = loop.run_until_idle()
    loop.submit(ask("b", length=40, max_tokens=2))
    second = loop.run_until_idle()
    assert first[-1].summary.num_cached == 0
    assert second[-1].summary.num_cached == 32
    assert (loop.stats.prefix_queries, loop.stats.prefix_hits) == (80, 32)


def test_requests_that_arrive_together_share_their_prefix_already_in_the_same_step():
    loop = build(num_blocks=20, max_batch_tokens=100)
    loop.submit(ask("a", length=40, max_tokens=2))
    loop.submit(ask("b", length=40, max_tokens=2))
    loop.run_until_idle()
    assert loop.runner.steps[0].num_tokens == 40 + 8


def test_outputs_are_reused_as_prefix_of_a_following_conversation(make):
    loop = make(num_blocks=20)
    loop.submit(ask("a", length=20, max_tokens=20))
    loop.run_until_idle()
    loop.submit(ask("b", length=45, max_tokens=1))  # 0..44 continues 0..39
    assert loop.run_until_idle()[-1].summary.num_cached == 32


def test_salts_keep_tenants_apart(make):
    loop = make(num_blocks=20)
    for name, salt in (("a", "x"), ("b", "y")):
        loop.submit(ask(name, length=40, salt=salt, max_tokens=2))
        deltas = loop.run_until_idle()
    assert deltas[-1].summary.num_cached == 0


@pytest.mark.parametrize("length", [1, 15, 16, 17, 32])
def test_siblings_share_the_prompt_and_copy_only_what_they_write(make, length):
    loop = make(num_blocks=20)
    loop.submit(ask("a", length=length, n=4, max_tokens=6))
    deltas = loop.run_until_idle()
    expected = list(range(length, length + 6))
    assert outputs(deltas) == {("a", index): expected for index in range(4)}
    assert sum(len(step.copies) for step in loop.runner.steps) == 3
    prompt_tokens = sum(
        part.stop - part.start
        for step in loop.runner.steps
        for part in step.slices
        if part.start < length
    )
    assert prompt_tokens == length + 3
    assert_all_returned(loop)


def test_siblings_go_on_when_their_leader_is_gone(make):
    loop = make(num_blocks=4, max_requests=1)
    loop.submit(ask("a", n=3, max_tokens=3))
    assert outputs(loop.run_until_idle()) == {("a", i): [20, 21, 22] for i in range(3)}
    assert_all_returned(loop)


def test_siblings_with_a_seed_get_seeds_of_their_own(make):
    loop = make()
    loop.submit(ask("a", n=3, seed=7, max_tokens=2))
    loop.run_until_idle()
    seeds = {one.seed for step in loop.runner.steps for one in step.admitted}
    assert seeds == {7, 8, 9}


def test_a_failed_step_ends_what_was_on_the_device_and_the_rest_goes_on(make):
    loop = make(runner=NullRunner(8, block_size=16, fail_at={2}), max_requests=1)
    loop.submit(ask("a", max_tokens=9))
    loop.submit(ask("b", max_tokens=3))
    deltas = loop.run_until_idle()
    ends = finishes(deltas)
    assert ends[("a", 0)] is Finish.ERROR
    assert ends[("b", 0)] is Finish.LENGTH
    assert "failed to compute a step" in next(d.error for d in deltas if d.error)
    assert_all_returned(loop)


def test_a_device_that_only_fails_is_given_up(make):
    loop = make(runner=NullRunner(8, block_size=16, fail_at=set(range(100))), max_requests=1)
    for name in range(5):
        loop.submit(ask(name))
    with pytest.raises(EngineDeadError, match="3 steps in a row failed"):
        loop.run_until_idle()


def test_a_device_that_takes_every_step_and_loses_it_is_dead(make):
    loop = make(runner=NullRunner(fail_result_at=range(1, 1000)))

    def go_on():
        for i in range(20):
            loop.submit(ask(i))
            loop.run_until_idle()

    with pytest.raises(EngineDeadError, match="3 steps in a row failed"):
        go_on()


def test_times_add_up(make):
    ticks = iter(range(1_000_000))
    loop = make()
    loop.scheduler.clock = lambda: float(next(ticks))
    loop.submit(ask("a", max_tokens=3))
    summary = loop.run_until_idle()[-1].summary
    assert (summary.num_prompt, summary.num_output) == (20, 3)
    assert summary.queued_s > 0
    assert summary.prefill_s > 0
    assert summary.decode_s > 0


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32), overlap=st.booleans(), data=st.data())
def test_whatever_happens_the_tokens_are_right_and_the_blocks_come_back(seed, overlap, data):
    rng = random.Random(seed)
    capabilities = Capabilities(
        mixed_batches=data.draw(st.booleans()),
        chunked_prefill=data.draw(st.booleans()),
        prefix_reuse=data.draw(st.booleans()),
        overlap=True,
    )
    block_size, num_blocks = rng.choice([1, 4, 8]), rng.randint(4, 14)
    room = num_blocks * block_size
    loop = build(
        num_blocks,
        block_size,
        max_model_len=max(2, room),
        capabilities=capabilities,
        overlap=overlap,
        max_batch_tokens=rng.randint(3, 40),
        max_requests=rng.randint(1, 6),
        prefix_caching=rng.random() < 0.8,
    )
    expected, aborted, deltas = {}, set(), []
    for name in range(rng.randint(1, 12)):
        length = rng.randint(1, max(1, room // 2))
        most = rng.randint(1, room - length)
        first = rng.choice([0, 0, 1, 50])  # equal starts share prefixes
        n = rng.choice([1, 1, 2, 3])
        salt, priority = rng.choice(["", "", "x"]), rng.choice([0, 0, -1, 1])
        loop.submit(
            ask(name, length, first=first, n=n, max_tokens=most, salt=salt, priority=priority)
        )
        start = first + length
        expected |= {(str(name), i): list(range(start, start + most)) for i in range(n)}
        for _ in range(rng.randint(0, 3)):
            deltas += loop.step()
        if rng.random() < 0.2:
            victim = str(rng.randint(0, name))
            ended = loop.abort(victim)
            aborted |= {(d.id, d.index) for d in ended}
            deltas += ended
    deltas += loop.run_until_idle()
    found, ends = outputs(deltas), finishes(deltas)
    assert ends.keys() == expected.keys()
    for key, tokens in expected.items():
        if key in aborted:
            assert ends[key] is Finish.ABORT
            assert found[key] == tokens[: len(found[key])]
        else:
            assert (found[key], ends[key]) == (tokens, Finish.LENGTH)
    assert_all_returned(loop)
