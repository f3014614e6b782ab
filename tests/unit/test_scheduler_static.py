"""Static shapes in the scheduler, over the null runner: it fails a step computed wrongly."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config import EngineConfig
from engine.errors import CapacityError
from engine.loop import EngineLoop
from engine.params import SamplingParams
from engine.platform import Capabilities, ShapeBuckets
from engine.request import Finish, Submission
from engine.testing.null import NullRunner

MIXED = Capabilities(
    mixed_batches=True, chunked_prefill=True, prefix_reuse=True, overlap=True, static_shapes=True
)
APART = Capabilities(chunked_prefill=True, prefix_reuse=True, static_shapes=True)
BLOCK = 16
CONTEXT = 512


def make(capabilities=MIXED, num_blocks=256, buckets=None, **config):
    buckets = buckets or ShapeBuckets(
        tokens=(16, 128, 256), requests=(8,), decodes=(1, 4, 8), blocks=(32,)
    )
    runner = NullRunner(num_blocks, block_size=BLOCK)
    loop = EngineLoop(
        EngineConfig(**{"max_batch_tokens": 2048, "max_requests": 64, **config}),
        runner,
        num_blocks=num_blocks,
        block_size=BLOCK,
        max_model_len=CONTEXT,
        capabilities=capabilities,
        buckets=buckets,
    )
    return loop, runner, buckets


def ask(name, length, max_tokens=4, first=0):
    prompt = tuple(range(first, first + length))
    return Submission(str(name), prompt, SamplingParams(max_tokens=max_tokens))


def shapes_of(runner, buckets):
    """The program of every step."""
    found = []
    for batch in runner.steps:
        sizes = [part.stop - part.start for part in batch.slices]
        blocks = max(-(-part.stop // BLOCK) for part in batch.slices)
        decode = set(sizes) == {1}
        found.append(buckets.fit(sum(sizes), len(sizes), blocks, decode=decode))
    return found


@pytest.mark.parametrize("capabilities", [MIXED, APART], ids=["mixed", "apart"])
def test_a_prompt_fills_a_bucket_before_it_overshoots_one(capabilities):
    loop, runner, _ = make(capabilities)
    loop.submit(ask("a", 129))
    loop.run_until_idle()
    assert [batch.num_tokens for batch in runner.steps[:2]] == [128, 1]


def test_where_a_step_costs_much_the_prompt_is_padded():
    buckets = ShapeBuckets(
        tokens=(16, 128, 256), requests=(8,), decodes=(8,), blocks=(32,), step_cost=1000
    )
    loop, runner, _ = make(buckets=buckets)
    loop.submit(ask("a", 129))
    loop.run_until_idle()
    assert runner.steps[0].num_tokens == 129


def test_prompts_that_wait_together_fill_a_bucket_together():
    loop, runner, _ = make()
    for i in range(4):
        loop.submit(ask(i, 35, first=1000 * i))  # 140 in all: 128, and then 12
    loop.run_until_idle()
    assert runner.steps[0].num_tokens == 128


def test_what_is_cached_already_is_no_demand():
    loop, runner, _ = make()
    loop.submit(ask("a", 129))
    loop.run_until_idle()
    before = len(runner.steps)
    loop.submit(ask("b", 130))  # 128 of them are in the cache
    loop.run_until_idle()
    assert runner.steps[before].num_tokens == 2


def test_decodes_are_never_held_back_to_fill_a_bucket():
    buckets = ShapeBuckets(tokens=(16, 256), requests=(32,), decodes=(32,), blocks=(32,))
    loop, runner, _ = make(buckets=buckets)
    for i in range(20):
        loop.submit(ask(i, 2, max_tokens=30, first=1000 * i))
    while loop.stats.num_running < 20:
        loop.step()
    loop.submit(ask("late", 5, first=50_000))
    loop.step()
    loop.step()
    assert all(len(batch.slices) >= 20 for batch in runner.steps[-2:])


def test_no_more_run_than_the_largest_decode_bucket_holds():
    loop, runner, _ = make(APART)
    for i in range(20):
        loop.submit(ask(i, 3, max_tokens=10, first=1000 * i))
    deltas = loop.run_until_idle()
    assert max(len(batch.slices) for batch in runner.steps) == 8
    assert sum(delta.finish is Finish.LENGTH for delta in deltas) == 20


@pytest.mark.parametrize("mixed", [True, False])
def test_a_step_holds_no_more_prompts_than_the_device_takes(mixed):
    one = Capabilities(mixed_batches=mixed, chunked_prefill=True, prefix_reuse=True, max_prefills=1)
    loop, runner, _ = make(one)
    for i in range(5):
        loop.submit(ask(i, 20, first=1000 * i))
    loop.run_until_idle()
    for batch in runner.steps:
        assert sum(part.stop - part.start > 1 for part in batch.slices) <= 1


class FewBlocks(ShapeBuckets):
    """Its running requests may have 20 blocks in all, at their greatest length."""

    def admit(self, candidate, running):
        return candidate.blocks + running.blocks <= 20


def test_the_device_says_who_may_join():
    buckets = FewBlocks(tokens=(256,), requests=(8,), decodes=(8,), blocks=(32,))
    loop, runner, _ = make(buckets=buckets)
    for i in range(6):
        loop.submit(ask(i, 100, max_tokens=12, first=1000 * i))  # 7 blocks each
    deltas = loop.run_until_idle()
    assert max(len(batch.slices) for batch in runner.steps) == 2
    assert sum(delta.finish is Finish.LENGTH for delta in deltas) == 6


def test_who_is_not_admitted_even_alone_is_refused_at_once():
    buckets = FewBlocks(tokens=(256,), requests=(8,), decodes=(8,), blocks=(32,))
    loop, _, _ = make(buckets=buckets)
    with pytest.raises(CapacityError, match="does not admit a request of 410 tokens"):
        loop.submit(ask("a", 400, max_tokens=10))
    assert loop.idle


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=14),
    common=st.integers(0, 60),
    mixed=st.booleans(),
    overlap=st.booleans(),
    num_blocks=st.integers(40, 120),
    step_cost=st.sampled_from([0, 20, 500]),
    prefills=st.sampled_from([None, 1, 3]),
)
def test_every_step_has_a_program_and_every_request_ends(
    lengths, common, mixed, overlap, num_blocks, step_cost, prefills
):
    buckets = ShapeBuckets(
        tokens=(16, 64, 200), requests=(6,), decodes=(2, 6), blocks=(32,), step_cost=step_cost
    )
    capabilities = Capabilities(
        mixed_batches=mixed,
        chunked_prefill=True,
        prefix_reuse=True,
        overlap=True,
        static_shapes=True,
        max_prefills=prefills,
    )
    loop, runner, _ = make(capabilities, num_blocks, buckets, overlap=overlap)
    deltas = []
    for i, length in enumerate(lengths):
        shared = tuple(range(common))[:length]
        own = tuple(range(1000 * (i + 1), 1000 * (i + 1) + length - len(shared)))
        loop.submit(Submission(str(i), shared + own, SamplingParams(max_tokens=5)))
        deltas += loop.step()
    deltas += loop.run_until_idle()
    assert sum(delta.finish is Finish.LENGTH for delta in deltas) == len(lengths)
    assert None not in shapes_of(runner, buckets)
    pool = loop.scheduler.allocator.pool
    assert pool.num_free == pool.num_blocks
