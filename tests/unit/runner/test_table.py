import numpy as np
import pytest
import torch

from engine.batch import Admission, Batch, Slice
from engine.params import SamplingParams
from engine.runner.table import RequestTable


@pytest.fixture
def table():
    return RequestTable(num_rows=4, max_length=12, block_size=4, device="cpu")


def admit(table, key, tokens):
    return table.admit(Admission(key, tuple(tokens), len(tokens), SamplingParams(), 0, ()))


def test_inputs_of_a_mixed_step_put_single_tokens_first(table):
    admit(table, 1, [10, 11, 12, 13, 14, 15])
    admit(table, 2, [20, 21, 22, 23, 24])
    batch = Batch(
        slices=(Slice(1, 2, 6, True, (7, 3), 0), Slice(2, 4, 5, True, (5, 9), 0)),
    )
    step = table.arrange(batch)
    table.update_blocks(step)
    inputs = table.inputs(step)
    assert step.order == (1, 0)
    assert inputs.input_ids.tolist() == [24, 12, 13, 14, 15]
    assert inputs.positions.tolist() == [4, 2, 3, 4, 5]
    metadata = inputs.metadata
    assert metadata.query_start.tolist() == [0, 1, 5]
    assert metadata.lengths.tolist() == [5, 6]
    assert metadata.block_table.tolist() == [[5, 9], [7, 3]]
    assert metadata.slots.tolist() == [9 * 4, 7 * 4 + 2, 7 * 4 + 3, 3 * 4, 3 * 4 + 1]
    assert (metadata.max_query, metadata.max_length, metadata.num_decodes) == (4, 6, 1)


def test_a_sampled_token_is_the_next_steps_input(table):
    row = admit(table, 1, [10, 11])
    table.append(np.array([row]), np.array([2]), torch.tensor([77]))
    batch = Batch(slices=(Slice(1, 2, 3, True, (1,), 0),))
    step = table.arrange(batch)
    table.update_blocks(step)
    assert table.inputs(step).input_ids.tolist() == [77]


def test_a_row_that_was_released_starts_clean(table):
    row = admit(table, 1, range(8))
    table.update_blocks(table.arrange(Batch(slices=(Slice(1, 0, 8, True, (5, 6), 0),))))
    assert table.release(1) == row
    assert table.release(1) is None
    assert admit(table, 2, [1]) == row
    assert table.blocks_RB[row].tolist() == [0, 0, 0]


def test_the_last_token_of_a_full_context_has_a_place(table):
    row = admit(table, 1, range(12))
    table.append(np.array([row]), np.array([12]), torch.tensor([99]))
    assert int(table.tokens_RL[row, 12]) == 99


def test_as_many_requests_fit_as_there_are_rows(table):
    rows = {admit(table, key, [key]) for key in range(4)}
    assert rows == {0, 1, 2, 3}
