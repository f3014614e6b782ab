from dataclasses import replace

import pytest
import torch
from paged_steps import TOLERANCES, PagedStep, spec_of

from engine_triton.architecture import Architecture
from engine_triton.attention.decode import Decode, DecodePlan

LENGTHS = (1, 15, 16, 17, 255, 257)


def attended(step: PagedStep, architecture: Architecture, splits: int = 1) -> float:
    """The error of one step of decodes, with as many parts at most."""
    spec, given = step.spec, step.metadata
    requests = len(step.requests)
    parts = torch.full((requests, splits, spec.num_heads, spec.head_dim), float("nan"))
    plan = DecodePlan(requests, splits, parts, parts[..., 0].clone())
    if splits == 1:
        plan = DecodePlan(requests, 1, None, None)
    kernel = Decode(spec, architecture, step.form)
    kernel(step.q_THD, step.seen, given.block_table, given.lengths, plan, step.out_THD)
    return step.error(step.out_THD)


def decodes(architecture: Architecture, *lengths: int, splits: int = 1, **spec: object) -> None:
    step = PagedStep(spec_of(**spec), architecture, [(length, 1) for length in lengths])
    assert attended(step, architecture, splits) < TOLERANCES[step.spec.dtype]


@pytest.mark.parametrize(
    ("block_size", "heads"),
    [(16, (4, 4)), (16, (8, 1)), (64, (4, 1)), (64, (7, 1)), (256, (8, 2)), (256, (14, 2))],
)
def test_a_batch_of_very_different_lengths(
    architecture: Architecture, block_size: int, heads: tuple[int, int]
) -> None:
    num_heads, num_kv_heads = heads
    decodes(
        architecture,
        *LENGTHS,
        block_size=block_size,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
    )


@pytest.mark.parametrize("block_size", [1, 4, 48])
def test_blocks_of_any_size(architecture: Architecture, block_size: int) -> None:
    decodes(architecture, 3, 70, block_size=block_size)


@pytest.mark.parametrize("head_dim", [16, 80, 96, 256])
def test_heads_of_any_size(architecture: Architecture, head_dim: int) -> None:
    decodes(architecture, 3, 70, head_dim=head_dim)


def test_more_heads_in_a_group_than_a_tile_has_rows(architecture: Architecture) -> None:
    decodes(architecture, 3, 70, num_heads=71, num_kv_heads=1)


@pytest.mark.parametrize("splits", [2, 3, 8])
def test_parts_are_merged_whatever_their_number(architecture: Architecture, splits: int) -> None:
    """Some requests have fewer parts than others, and some only one."""
    decodes(architecture, 300, 1, 65, 513, splits=splits)


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("window", [1, 16, 70])
def test_a_window_hides_what_is_before_it(
    architecture: Architecture, window: int, splits: int
) -> None:
    decodes(architecture, 5, 200, 129, splits=splits, window=window)


@pytest.mark.parametrize("splits", [1, 3])
def test_scores_can_be_capped(architecture: Architecture, splits: int) -> None:
    decodes(architecture, 5, 200, splits=splits, soft_cap=2.0, scale=1.0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("kv_dtype", ["float32", "bfloat16", "float16", "fp8_e4m3", "fp8_e5m2"])
def test_every_format_of_the_cache(architecture: Architecture, dtype: str, kv_dtype: str) -> None:
    decodes(architecture, 17, 100, splits=2, dtype=dtype, kv_dtype=kv_dtype)


@pytest.mark.parametrize("fp8", [None, "e4m3", "e4m3fnuz"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_fp8_as_each_architecture_has_it(
    architecture: Architecture, fp8: str | None, dtype: str
) -> None:
    decodes(replace(architecture, fp8=fp8), 17, 100, dtype=dtype, kv_dtype="fp8_e4m3")


@pytest.mark.parametrize("splits", [1, 3])
def test_a_request_without_tokens_gets_zeros(architecture: Architecture, splits: int) -> None:
    step = PagedStep(spec_of(), architecture, [(20, 1), (100, 1)])
    given, kernel = step.metadata, Decode(step.spec, architecture, step.form)
    parts = torch.full((2, splits, 4, 32), float("nan")) if splits > 1 else None
    weights = None if parts is None else parts[..., 0].clone()
    lengths = torch.tensor([0, 100], dtype=torch.int32)
    plan = DecodePlan(2, splits, parts, weights)
    kernel(step.q_THD, step.seen, given.block_table, lengths, plan, step.out_THD)
    assert not step.out_THD[0].any()
    assert step.out_THD[1].isfinite().all()


class TestPlan:
    device = torch.device("cpu")

    def splits(self, architecture: Architecture, requests: int, length: int, **spec: object) -> int:
        chosen = spec_of(**spec)
        step = PagedStep(chosen, architecture, [(1, 1)])
        return Decode(chosen, architecture, step.form).plan(requests, length, self.device).splits

    def test_few_requests_are_split_until_the_device_is_busy(
        self, architecture: Architecture
    ) -> None:
        big = replace(architecture, processors=1000)
        assert self.splits(big, 1, 100_000) == 8  # the most that can be merged
        small = replace(architecture, processors=1)
        assert [self.splits(small, n, 100_000) for n in (1, 2, 4, 100)] == [4, 2, 1, 1]

    def test_short_requests_and_short_windows_are_not_split(
        self, architecture: Architecture
    ) -> None:
        big = replace(architecture, processors=1000)
        assert self.splits(big, 1, 64) == 1
        assert self.splits(big, 1, 65) == 2
        assert self.splits(big, 1, 100_000, window=64) == 1
