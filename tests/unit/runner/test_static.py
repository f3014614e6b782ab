"""What a padded step looks like."""

import pytest
import torch

from engine.batch import Admission, Batch, Slice
from engine.errors import UnsupportedError
from engine.params import SamplingParams
from engine.platform import Shape, ShapeBuckets
from engine.runner.static import StaticSteps
from engine.runner.table import RequestTable

SIZES = {"tokens": (8, 16), "requests": (4,), "decodes": (2, 4), "blocks": (3, 5)}
BLOCK = 4


@pytest.fixture
def table():
    return RequestTable(num_rows=4, max_length=20, block_size=BLOCK, device="cpu")


def steps(table, **settings):
    found = StaticSteps(ShapeBuckets(**SIZES, **settings), table, host_logits=True)
    found.spare_block = 99
    return found


def arrange(table, *parts):
    """Slices start:stop of requests whose tokens are 100 * key + position."""
    admitted, slices = [], []
    for key, (start, stop) in enumerate(parts, start=1):
        tokens = tuple(100 * key + i for i in range(stop))
        admitted.append(Admission(key, tokens, stop, SamplingParams(), 0, ()))
        blocks = tuple(10 * key + i for i in range(-(-stop // BLOCK)))
        slices.append(Slice(key, start, stop, True, blocks))
    for one in admitted:
        table.admit(one)
    step = table.arrange(Batch(admitted=tuple(admitted), slices=tuple(slices)))
    table.update_blocks(step)
    return step


def test_a_step_with_prompts_is_padded_behind_its_last_token(table):
    step = arrange(table, (4, 9), (2, 3))
    static = steps(table)
    padding = static.padding(step)
    assert padding.shape == Shape(8, 4, 3)
    found = table.inputs(step, padding)
    assert found.input_ids[:6].tolist() == [202, 104, 105, 106, 107, 108]
    assert found.positions.tolist() == [2, 4, 5, 6, 7, 8, 0, 0]
    one = found.metadata
    spare = 99 * BLOCK
    assert one.slots.tolist() == [82, 44, 45, 46, 47, 48, spare, spare]
    assert one.query_start.tolist() == [0, 1, 6, 6, 6]
    assert one.lengths.tolist() == [3, 9, 0, 0]
    assert one.block_table.tolist() == [[20, 99, 99], [10, 11, 12], [99] * 3, [99] * 3]
    assert (one.max_query, one.max_length, one.num_decodes) == (8, 12, 0)


def test_a_decode_step_is_padded_with_requests_of_one_token(table):
    step = arrange(table, (4, 5), (14, 15), (2, 3))
    found = table.inputs(step, steps(table).padding(step))
    assert len(found.input_ids) == 4
    one = found.metadata
    assert one.query_start.tolist() == [0, 1, 2, 3, 4]
    assert one.lengths.tolist() == [5, 15, 3, 1]
    assert one.block_table.shape == (4, 5)
    assert one.block_table[3].tolist() == [99] * 5
    assert (one.max_query, one.max_length, one.num_decodes) == (1, 20, 4)


def test_a_platform_may_name_what_pads(table):
    step = arrange(table, (0, 5))
    found = table.inputs(step, steps(table, pad_block=-1, pad_slot=-1).padding(step)).metadata
    assert found.slots.tolist()[5:] == [-1, -1, -1]
    assert found.block_table.tolist() == [[10, 11, -1]] + [[-1] * 3] * 3


def test_two_steps_of_one_shape_differ_in_nothing_but_the_content_of_tensors(table):
    first = table.inputs(step := arrange(table, (0, 5)), steps(table).padding(step)).metadata
    for key in (1,):
        table.release(key)
    second = table.inputs(step := arrange(table, (0, 7), (0, 1)), steps(table).padding(step))
    other = second.metadata
    for name in first.__slots__:
        one, two = getattr(first, name), getattr(other, name)
        if isinstance(one, torch.Tensor):
            assert (one.shape, one.dtype) == (two.shape, two.dtype), name
        else:
            assert one == two, name


def test_tokens_kept_on_the_host_give_the_same_step():
    there = RequestTable(4, 20, BLOCK, "cpu")
    # Any other name than the device's: the host keeps them, and sends what a step needs.
    here = RequestTable(4, 20, BLOCK, "cpu:0", tokens_on="cpu")
    found = []
    for table in (there, here):
        step = arrange(table, (4, 9), (2, 3))
        found.append(table.inputs(step, steps(table).padding(step)))
    assert torch.equal(found[0].input_ids[:6], found[1].input_ids[:6])
    assert torch.equal(found[0].positions, found[1].positions)
    assert torch.equal(found[0].metadata.slots, found[1].metadata.slots)


def test_a_step_that_no_bucket_holds_is_refused_with_its_shape_and_what_there_is(table):
    step = arrange(table, (0, 17))
    with pytest.raises(UnsupportedError, match=r"17 tokens of 1 requests over 5 blocks; there are"):
        steps(table).padding(step)
    assert steps(table, missing="compile").padding(step).shape == Shape(17, 1, 5)
