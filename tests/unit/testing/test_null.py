"""The null runner fails every batch that a device could not compute right."""

import subprocess
import sys

import pytest

from engine.batch import Admission, Batch, Slice, SliceOutput
from engine.config import EngineConfig
from engine.errors import UnsupportedError
from engine.params import SamplingParams
from engine.platform import AttentionSpec, Platform
from engine.testing.null import NullPlatform, NullPlugin, NullRunner, null_spec

GREEDY = SamplingParams(temperature=0.0)


def admit(key, *tokens, num_prompt=None, params=GREEDY):
    return Admission(key, tokens, num_prompt or len(tokens), params, seed=key, stop_ids=())


def whole(key, length, *blocks):
    return Slice(key, 0, length, True, blocks, 0)


@pytest.fixture
def runner():
    """Request 1, tokens 5 6 7, is computed into block 0; blocks have four tokens."""
    runner = NullRunner(4, block_size=4)
    assert runner.load() == 4
    first = Batch(admitted=(admit(1, 5, 6, 7),), slices=(whole(1, 3, 0),))
    assert tokens(runner, first) == [(8,)]
    return runner


def tokens(runner, batch):
    return [one.tokens for one in runner.execute(batch).result().slices]


def refuses(runner, message, **batch):
    with pytest.raises(AssertionError, match=message):
        runner.execute(Batch(**batch))


def test_the_token_after_n_is_n_plus_one_without_being_told(runner):
    assert tokens(runner, Batch(slices=(Slice(1, 3, 4, True),))) == [(9,)]
    assert tokens(runner, Batch(slices=(Slice(1, 4, 5, True, (1,), 1),))) == [(10,)]
    assert len(runner.steps) == 3


def test_a_slice_that_does_not_end_the_request_brings_no_token():
    runner = NullRunner(4, block_size=4)
    batch = Batch(admitted=(admit(1, 5, 6, 7),), slices=(Slice(1, 0, 2, False, (0,), 0),))
    assert tokens(runner, batch) == [()]


def test_tokens_stay_within_the_vocabulary():
    runner = NullRunner(4, block_size=4, vocab_size=8)
    batch = Batch(admitted=(admit(1, 7),), slices=(whole(1, 1, 0),))
    assert tokens(runner, batch) == [(0,)]


def test_logprobs_are_certain_and_given_only_where_asked_for():
    runner = NullRunner(4, block_size=4)
    params = SamplingParams(temperature=0.0, logprobs=2, prompt_logprobs=1)
    batch = Batch(admitted=(admit(1, 5, 6, 9, params=params),), slices=(whole(1, 3, 0),))
    [output] = runner.execute(batch).result().slices
    assert [(one.token, one.logprob, one.rank) for one in output.logprobs] == [(10, 0.0, 1)]
    assert [(one.token, one.rank) for one in output.prompt_logprobs] == [(6, 1), (9, 2)]


def test_a_slice_must_continue_what_was_computed(runner):
    refuses(runner, "computed up to 3, its slice starts at 2", slices=(Slice(1, 2, 4, True),))


def test_a_slice_must_not_reach_beyond_the_known_tokens(runner):
    refuses(runner, "has 4 tokens, its slice ends at 5", slices=(Slice(1, 3, 5, True),))


def test_a_slice_that_ends_the_request_must_sample(runner):
    refuses(runner, "must sample after its last token", slices=(Slice(1, 3, 4, False),))


def test_an_empty_slice_is_refused(runner):
    refuses(runner, "empty slice", slices=(Slice(1, 3, 3, False),))


def test_the_block_table_must_cover_the_slice(runner):
    tokens(runner, Batch(slices=(Slice(1, 3, 4, True),)))
    refuses(runner, "1 blocks of 4, too few for 5", slices=(Slice(1, 4, 5, True),))


def test_the_block_table_must_have_no_hole(runner):
    refuses(runner, "hole in its block table", slices=(Slice(1, 3, 4, True, (2,), 2),))


def test_a_block_must_exist(runner):
    refuses(runner, "no block 4", slices=(Slice(1, 3, 4, True, (4,), 1),))


def test_a_block_must_not_stand_twice_in_a_table(runner):
    refuses(runner, "has a block twice", slices=(Slice(1, 3, 4, True, (0,), 1),))


def test_two_requests_must_not_write_one_block_in_a_step():
    runner = NullRunner(4, block_size=4)
    both = (admit(1, 5, 6), admit(2, 5, 6))
    slices = (whole(1, 2, 0), whole(2, 2, 0))
    refuses(runner, "requests 1 and 2 write block 0", admitted=both, slices=slices)


def test_a_prefix_may_be_read_only_where_a_block_holds_exactly_it(runner):
    shared = Slice(2, 2, 4, True, (0,), 0)
    refuses(runner, "does not hold its tokens", admitted=(admit(2, 9, 6, 7, 8),), slices=(shared,))


def test_a_cached_prefix_that_is_right_is_accepted(runner):
    tokens(runner, Batch(slices=(Slice(1, 3, 4, True),)))  # block 0 is full: 5 6 7 8
    part = Slice(2, 4, 5, True, (0, 1), 0)
    assert tokens(runner, Batch(admitted=(admit(2, 5, 6, 7, 8, 9),), slices=(part,))) == [(10,)]


def test_a_prefix_written_earlier_in_the_same_step_is_accepted_and_a_later_one_is_not():
    first, second = whole(1, 5, 0, 1), Slice(2, 4, 6, True, (0, 2), 0)
    both = (admit(1, 1, 2, 3, 4, 5), admit(2, 1, 2, 3, 4, 8, 9))
    assert tokens(NullRunner(4, block_size=4), Batch(admitted=both, slices=(first, second)))
    runner = NullRunner(4, block_size=4)
    refuses(runner, "does not hold its tokens", admitted=both, slices=(second, first))


def test_what_is_overwritten_while_someone_else_reads_it_is_found(runner):
    other = Slice(2, 0, 2, True, (0,), 0)  # takes block 0, which request 1 still holds
    batch = {"admitted": (admit(2, 1, 2),), "slices": (Slice(1, 3, 4, True, (1,), 1), other)}
    refuses(runner, "block 0", **batch)


def test_a_copy_carries_the_content_and_leaves_the_source(runner):
    copy = Batch(
        admitted=(admit(2, 5, 6, 7),), copies=((0, 3),), slices=(Slice(2, 2, 3, True, (3,), 0),)
    )
    assert tokens(runner, copy) == [(8,)]
    assert tokens(runner, Batch(slices=(Slice(1, 3, 4, True),))) == [(9,)]
    assert runner.blocks[0][:3] == runner.blocks[3][:3]


def test_a_block_must_not_be_copied_and_overwritten_at_once(runner):
    refuses(runner, "copied and overwritten", copies=((0, 1), (1, 2)))
    refuses(runner, "two copies have one target", copies=((0, 2), (1, 2)))


def test_requests_must_be_admitted_once_and_released_before_they_come_back(runner):
    refuses(runner, "request 1 is admitted, but", admitted=(admit(1, 5),))
    refuses(runner, "request 9 was never admitted", slices=(whole(9, 1, 1),))
    refuses(runner, "request 9 is released, but", released=(9,))
    again = Batch(released=(1,), admitted=(admit(1, 5, 6, num_prompt=1),), slices=(whole(1, 2, 0),))
    assert tokens(runner, again) == [(7,)]


def test_no_more_requests_may_be_known_than_there_are_rows():
    runner = NullRunner(4, block_size=4, max_requests=1)
    refuses(runner, "more than 1 requests", admitted=(admit(1, 5), admit(2, 6)))


def test_after_a_reset_nothing_is_known_and_no_content_is_trusted(runner):
    runner.reset()
    part = Slice(1, 2, 3, True, (0,), 0)
    refuses(runner, "does not hold its tokens", admitted=(admit(1, 5, 6, 7),), slices=(part,))


def test_faults_come_in_the_step_they_were_asked_for():
    runner = NullRunner(4, block_size=4, fail_at={1}, fail_result_at={2}, spoil_at={3})
    batch = Batch(admitted=(admit(1, 5),), slices=(whole(1, 1, 0),))
    with pytest.raises(RuntimeError, match="step 1 was not started"):
        runner.execute(batch)
    pending = runner.execute(batch)
    with pytest.raises(RuntimeError, match="step 2 was lost"):
        pending.result()
    runner.reset()
    [output] = runner.execute(batch).result().slices
    assert output == SliceOutput(error="injected fault: step 3 spoilt this request")


def test_the_platform_is_on_the_narrow_seam():
    spec = null_spec()
    platform = spec.create(EngineConfig(num_blocks=7, block_size=4), 0)
    assert isinstance(platform, Platform)
    assert isinstance(platform, NullPlatform)
    runner = platform.runner()
    assert (runner.load(), runner.block_size) == (7, 4)
    assert "7 blocks" in runner.report()
    layer = AttentionSpec(
        num_heads=1, num_kv_heads=1, head_dim=8, block_size=16, dtype="float32",
        kv_dtype="float32", scale=1.0,
    )  # fmt: skip
    with pytest.raises(UnsupportedError, match="through its runner"):
        platform.attention(layer)
    assert NullPlugin().engine_platforms()[0].name == "null"


def test_nothing_of_it_imports_torch():
    code = "import sys, engine.testing.null; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
