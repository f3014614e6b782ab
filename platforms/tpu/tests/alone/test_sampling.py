"""Choosing tokens where the logits are, beside the core's own operations."""

import jax
import numpy as np
import pytest
import torch

from engine.ops import fill
from engine.platform import OpTable
from engine_tpu.arrays import ChipTensor
from engine_tpu.placement import Placement
from engine_tpu.programs import Programs
from engine_tpu.sampling import Sampling

ROWS = (4, 16)
REFERENCE = OpTable()
fill(REFERENCE)


@pytest.fixture(scope="module")
def sampling():
    return Sampling(Programs(Placement.over(jax.devices()[:1])), ROWS)


def scores(rows, size, seed=0):
    random = torch.Generator().manual_seed(seed)
    found = torch.randn(rows, size, generator=random) * 3
    found[:, 7] = found[:, 5]  # ties
    found[0, : size // 2] = -torch.inf  # as a mask leaves them
    return found


@pytest.mark.parametrize("size", [96, 512, 1300])
def test_the_highest_score_and_the_lowest_id_that_has_it(sampling, size):
    found = scores(3, size)
    found[1, [40, 60]] = 50.0
    highest, ids = sampling.argmax(found)
    wanted = REFERENCE.reference("argmax")(found)
    assert torch.equal(highest, wanted[0])
    assert torch.equal(ids, wanted[1])
    assert ids.dtype == torch.int64
    assert ids[1] == 40


def test_a_nan_is_the_highest_of_its_row_alone(sampling):
    found = scores(3, 96)
    found[1, 3] = torch.nan
    highest, _ = sampling.argmax(found)
    assert highest.isnan().tolist() == [False, True, False]


FILTERS = {
    "none": (1.0, 0, 1.0, 0.0),
    "temperature": (0.4, 0, 1.0, 0.0),
    "top-k": (1.3, 7, 1.0, 0.0),
    "top-p": (1.0, 0, 0.8, 0.0),
    "top-k and top-p": (1.0, 20, 0.7, 0.0),
    "min-p": (0.9, 0, 1.0, 0.05),
    "all": (1.1, 30, 0.9, 0.02),
}


def drawn(operation, found, filters, seed):
    """Of 12 rows that draw among 14; each row has filters of its own."""
    places = np.array([i for i in range(14) if i not in (2, 9)])
    columns = np.array([filters[i % len(filters)] for i in range(len(places))]).T
    temperature, top_k, top_p, min_p = columns
    uniforms = np.random.default_rng(seed).random((len(places), 2), dtype=np.float32)
    rest = (top_k.astype(np.int64), top_p.astype(np.float32), min_p.astype(np.float32))
    return operation(
        found.clone(), found.amax(-1), places, temperature.astype(np.float32), *rest, uniforms
    )


@pytest.mark.parametrize("size", [96, 1300])
def test_rows_draw_the_tokens_that_the_cores_operation_draws(sampling, size):
    cases = [[one] for one in FILTERS.values()] + [list(FILTERS.values())]
    different, total = 0, 0
    for number, filters in enumerate(cases):
        for seed in range(8):
            found = scores(14, size, seed=100 * number + seed)
            ours = drawn(sampling.sample, found, filters, seed)
            right = drawn(REFERENCE.reference("sample"), found, filters, seed)
            assert ours.dtype == torch.int64
            different += int((ours != right).sum())
            total += len(ours)
    assert different <= total // 500, f"{different} of {total}: more than rounding explains"


def test_what_a_filter_drops_is_never_drawn(sampling):
    """Uniform numbers at both ends; 3 tokens have nearly all, and ties with the last are kept."""
    found = torch.full((4, 96), -4.0)
    found[:, [10, 20, 30, 31]] = torch.tensor([5.0, 4.0, 3.0, 3.0])
    count = np.arange(4)
    for first in (0.0, 0.5, 0.9999999):
        numbers = np.array([[first, 0.3]] * 4, dtype=np.float32)
        ones, zeros = np.ones(4, dtype=np.float32), np.zeros(4, dtype=np.float32)
        three = np.full(4, 3, dtype=np.int64)
        ids = sampling.sample(found, found.amax(-1), count, ones, three, ones, zeros, numbers)
        assert set(ids.tolist()) <= {10, 20, 30, 31}


def test_sizes_between_buckets_make_no_program(sampling):
    sampling.prepare((16, 96))
    before = sampling._programs.num_compiled
    for rows in (5, 9, 16):
        sampling.argmax(scores(rows, 96))
    assert sampling._programs.num_compiled == before


def test_logits_stay_on_the_chips_until_torch_computes_with_them(sampling):
    array = jax.numpy.asarray(scores(4, 96).numpy())
    logits = ChipTensor(array, 4)[:3]
    assert isinstance(logits, ChipTensor)
    assert logits.shape == (3, 96)
    wanted = torch.from_numpy(np.array(array))[:3]
    assert torch.equal(sampling.argmax(logits)[1], wanted.argmax(-1))
    assert logits._here is None, "the platform's own operations need no copy"
    assert torch.equal(logits + 0.0, wanted)
    assert torch.equal(logits[torch.tensor([2, 0])], wanted[[2, 0]])
