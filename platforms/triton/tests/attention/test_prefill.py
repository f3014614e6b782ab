from dataclasses import replace

import pytest
import torch
from paged_steps import TOLERANCES, PagedStep, spec_of

from engine.platform import StepMetadata
from engine_triton.architecture import Architecture
from engine_triton.attention.prefill import Prefill


def attends(architecture: Architecture, *sizes: tuple[int, int], **spec: object) -> None:
    """`sizes`: (length, rows) of each request."""
    step = PagedStep(spec_of(**spec), architecture, sizes)
    given = replace(step.metadata, num_decodes=0)
    kernel = Prefill(step.spec, architecture, step.form)
    plan = kernel.plan(given)
    kernel(step.q_THD, step.seen, given.block_table, given.lengths, plan, step.out_THD)
    assert step.error(step.out_THD) < TOLERANCES[step.spec.dtype]


@pytest.mark.parametrize(
    ("block_size", "heads"), [(16, (4, 4)), (64, (8, 2)), (256, (7, 1)), (4, (8, 1))]
)
def test_a_ragged_batch_of_whole_prompts_and_later_chunks(
    architecture: Architecture, block_size: int, heads: tuple[int, int]
) -> None:
    sizes = ((1, 1), (15, 15), (257, 16), (255, 3), (40, 17))
    attends(architecture, *sizes, block_size=block_size, num_heads=heads[0], num_kv_heads=heads[1])


def test_a_prompt_of_many_tiles(architecture: Architecture) -> None:
    attends(architecture, (257, 257), num_heads=4, num_kv_heads=1)


@pytest.mark.parametrize("window", [1, 20, 70, 150])
def test_a_window_hides_what_is_before_it(architecture: Architecture, window: int) -> None:
    attends(architecture, (200, 100), (30, 30), window=window)


def test_scores_can_be_capped_within_a_window(architecture: Architecture) -> None:
    attends(architecture, (100, 40), (17, 17), soft_cap=2.0, scale=1.0, window=30)


@pytest.mark.parametrize("head_dim", [16, 80, 256])
def test_heads_of_any_size(architecture: Architecture, head_dim: int) -> None:
    attends(architecture, (70, 9), (5, 5), head_dim=head_dim)


def test_more_heads_in_a_group_than_a_tile_has_rows(architecture: Architecture) -> None:
    attends(architecture, (10, 3), (5, 5), num_heads=131, num_kv_heads=1)


@pytest.mark.parametrize(
    ("dtype", "kv_dtype"),
    [
        ("bfloat16", "bfloat16"),
        ("bfloat16", "fp8_e4m3"),
        ("float16", "float32"),
        ("float16", "fp8_e5m2"),
        ("float32", "fp8_e4m3"),
    ],
)
def test_every_format_of_the_cache(architecture: Architecture, dtype: str, kv_dtype: str) -> None:
    attends(architecture, (90, 30), dtype=dtype, kv_dtype=kv_dtype)


def work(architecture: Architecture, rows: list[int], decodes: int, tokens: int) -> list[list[int]]:
    """The list made for requests with so many rows; `tokens` may be more, as padding is."""
    spec = spec_of()
    starts = torch.tensor([0, *rows]).cumsum(0).int()
    lengths = torch.full((len(rows),), 9).int()
    table, slots = torch.zeros(len(rows), 1).int(), torch.zeros(tokens).long()
    given = StepMetadata(starts, lengths, table, slots, max(rows), 9, decodes)
    step = PagedStep(spec, architecture, [(1, 1)])
    found: list[list[int]] = Prefill(spec, architecture, step.form).plan(given).work.tolist()
    return found


@pytest.mark.parametrize(
    ("rows", "decodes"),
    [
        ([1], 0),
        ([64], 0),
        ([65, 1, 128, 200, 63], 0),
        ([1, 1, 1, 70, 64, 5], 3),
        ([3, 0, 0, 130, 0], 0),
        ([1 + 37 * i % 90 for i in range(40)], 0),
    ],
)
@pytest.mark.parametrize("padding", [0, 100])
def test_the_list_of_work_has_every_tile_once(
    architecture: Architecture, rows: list[int], decodes: int, padding: int
) -> None:
    """Two heads a group, in tiles of 128 rows: 64 tokens each."""
    found = work(architecture, rows, decodes, sum(rows) + padding)
    starts = [sum(rows[:i]) for i in range(len(rows))]
    expected = [
        [i, starts[i] + tile] for i in range(decodes, len(rows)) for tile in range(0, rows[i], 64)
    ]
    assert [entry for entry in found if entry != [-1, 0]] == expected
    assert len(found) <= (sum(rows) + padding - decodes) // 64 + len(rows) - decodes
