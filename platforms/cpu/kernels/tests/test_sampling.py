"""The highest score, and draws from filtered scores, against float64.

The oracle filters and draws in float64. Where a number that decides (a uniform number, or the share
of a nucleus) is so near the border that float32 may decide otherwise, the row is not compared.
"""

import ctypes
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

CHUNK = 512
NEAR = 3e-6
GUARD = 64
Floats = NDArray[np.float64]

SIZES = [1, 2, 15, 16, 17, 127, 129, 511, 512, 513, 1200, 5000, 16384, 16385, 40000]


@pytest.fixture(autouse=True, params=[1, 2, 3], ids=lambda count: f"{count} threads")
def threads(request: pytest.FixtureRequest, lib: ctypes.CDLL) -> Iterator[None]:
    lib.ek_set_threads(request.param)
    yield
    lib.ek_set_threads(0)


def guarded(dtype: torch.dtype, size: int, poison: float) -> tuple[Tensor, Tensor]:
    whole = torch.full((size + 2 * GUARD,), poison, dtype=dtype)
    return whole, whole[GUARD : GUARD + size]


def strided(scores: Tensor) -> Tensor:
    """The same rows, NaN between them."""
    wide = torch.full((len(scores), scores.shape[1] + 3), torch.nan)
    wide[:, 1:-2] = scores
    return wide[:, 1:-2]


def argmax(lib: ctypes.CDLL, scores: Tensor) -> tuple[Tensor, Tensor]:
    scores = strided(scores)
    rows, size = scores.shape
    all_highest, highest = guarded(torch.float32, rows, 1234.5)
    all_ids, ids = guarded(torch.int64, rows, -7)
    outputs = (highest.data_ptr(), ids.data_ptr())
    assert lib.ek_argmax(scores.data_ptr(), scores.stride(0), size, *outputs, rows) == 0
    for whole, poison in ((all_highest, 1234.5), (all_ids, -7)):
        assert (whole[:GUARD] == poison).all()
        assert (whole[-GUARD:] == poison).all()
    return highest, ids


def sample(lib: ctypes.CDLL, scores: Tensor, asked: dict[str, NDArray[Any]]) -> NDArray[np.int64]:
    highest, _ = argmax(lib, scores)
    scores = strided(scores)
    rows = len(asked["places"])
    whole, ids = guarded(torch.int64, rows, -7)
    kinds = {"places": np.int64, "top_k": np.int64}
    order = ("places", "temperature", "top_k", "top_p", "min_p", "uniforms")
    arrays = [np.ascontiguousarray(asked[name], kinds.get(name, np.float32)) for name in order]
    scored = (scores.data_ptr(), scores.stride(0), scores.shape[1], highest.data_ptr())
    addresses = [one.ctypes.data for one in arrays]
    assert lib.ek_sample(*scored, *addresses, ids.data_ptr(), rows) == 0
    assert (whole[:GUARD] == -7).all()
    assert (whole[-GUARD:] == -7).all()
    return ids.numpy()


def asking(rows: int, seed: int = 0, **numbers: Any) -> dict[str, NDArray[Any]]:
    random = np.random.default_rng(seed)
    asked = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, **numbers}
    found = {name: np.broadcast_to(np.asarray(one), (rows,)) for name, one in asked.items()}
    uniforms = random.integers(0, 2**24, (rows, 2)) * 2.0**-24
    return {"places": np.arange(rows), "uniforms": uniforms, **found}


def kept_weights(scores: Floats, top_k: int, top_p: float, min_p: float) -> Floats | None:
    """Of scores that are divided by the temperature. None: too near to tell."""
    weights = np.exp(scores - scores.max())
    if top_k:
        weights[scores < np.sort(scores)[-top_k]] = 0
    floor = min_p
    if top_p < 1:
        ordered = np.sort(weights)[::-1]
        before = np.cumsum(ordered) - ordered
        target = max(top_p * weights.sum(), 2.0**-40)
        borders = before[1:][ordered[1:] < ordered[:-1]]  # within ties none is near
        if (np.abs(borders - target) < NEAR * weights.sum()).any():
            return None
        floor = max(floor, ordered[before < target].min())
    if floor and (np.abs(weights / floor - 1)[weights != floor] < NEAR).any():
        return None
    weights[weights < floor] = 0
    return weights


def pick(weights: Floats, uniform: float) -> int | None:
    running = np.cumsum(weights)
    share = uniform * running[-1]
    if (np.abs(running - share)[weights > 0] < NEAR * running[-1]).any():
        return None
    return int(np.flatnonzero((running > share) & (weights > 0))[0])


def expected(scores: Tensor, asked: dict[str, NDArray[Any]]) -> list[int | None]:
    """float32 numbers as the library gets them; arithmetic in float64."""
    found: list[int | None] = []
    for i, place in enumerate(asked["places"]):
        temperature, top_p, min_p = (
            float(np.float32(asked[name][i])) for name in ("temperature", "top_p", "min_p")
        )
        row = scores[place].double().numpy() / temperature
        weights = kept_weights(row, int(asked["top_k"][i]), top_p, min_p)
        token = None
        if weights is not None:
            starts = np.arange(0, len(weights), CHUNK)
            chunk = pick(np.add.reduceat(weights, starts), asked["uniforms"][i, 0])
            if chunk is not None:
                inside = weights[chunk * CHUNK : (chunk + 1) * CHUNK]
                token = pick(inside, asked["uniforms"][i, 1])
                token = None if token is None else chunk * CHUNK + token
        found.append(token)
    return found


def noise(rows: int, size: int, scale: float = 3.0, seed: int = 0) -> Tensor:
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(seed + size)) * scale


@pytest.mark.parametrize("size", [*SIZES, 100_003])
@pytest.mark.parametrize("rows", [1, 2, 13])
def test_argmax_finds_the_highest_and_the_first_of_equals(
    lib: ctypes.CDLL, size: int, rows: int
) -> None:
    for scores in (noise(rows, size), noise(rows, size).round(), torch.zeros(rows, size)):
        highest, ids = argmax(lib, scores)
        assert torch.equal(highest, scores.amax(-1))
        assert ids.tolist() == scores.numpy().argmax(-1).tolist()  # the first, says NumPy


@pytest.mark.parametrize("size", [1, 17, 513, 40000, 100_003])
def test_argmax_of_rows_with_infinities_and_nan(lib: ctypes.CDLL, size: int) -> None:
    for place in {0, size // 2, size - 1}:
        scores = noise(4, size)
        scores[0, place] = torch.nan
        scores[1, place] = torch.inf
        scores[2, :] = -torch.inf
        scores[3, :] = -torch.inf
        scores[3, place] = -3e38
        highest, ids = argmax(lib, scores)
        assert highest[0].isnan()
        assert 0 <= ids[0] < size
        assert highest[1:].tolist() == [torch.inf, -torch.inf, float(torch.tensor(-3e38))]
        assert ids[1:].tolist() == [place, 0, place]
        highest, ids = argmax(lib, torch.full((1, size), torch.nan))
        assert highest.isnan()
        assert 0 <= ids < size


FILTERS: dict[str, dict[str, Any]] = {
    "none": {},
    "cold": {"temperature": 0.3},
    "hot": {"temperature": 8.0},
    "top-k": {"top_k": 5},
    "top-k of one": {"top_k": 1},
    "a large top-k": {"top_k": 1500},
    "top-p": {"top_p": 0.7},
    "a narrow top-p": {"top_p": 1e-9},
    "a top-p of zero": {"top_p": 0.0},
    "a wide top-p": {"top_p": 0.99, "temperature": 0.5},
    "min-p": {"min_p": 0.05},
    "min-p of one": {"min_p": 1.0},
    "top-k and top-p": {"top_k": 40, "top_p": 0.9},
    "top-k and min-p": {"top_k": 40, "min_p": 0.1},
    "top-p and min-p": {"top_p": 0.9, "min_p": 0.01},
    "all": {"temperature": 0.8, "top_k": 50, "top_p": 0.95, "min_p": 0.02},
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", list(FILTERS))
def test_draws_are_those_of_float64(lib: ctypes.CDLL, size: int, name: str) -> None:
    rows = 13 if size > 2000 else 60
    scores = noise(rows, size)
    top_k = FILTERS[name].get("top_k", 0)
    asked = asking(rows, seed=size, **{**FILTERS[name], "top_k": top_k if top_k < size else 0})
    right = expected(scores, asked)
    found = sample(lib, scores, asked)
    compared = [i for i, token in enumerate(right) if token is not None]
    assert len(compared) >= 0.8 * rows, "too many rows are too near to tell"
    assert [found[i] for i in compared] == [right[i] for i in compared]


@pytest.mark.parametrize("name", list(FILTERS))
def test_ties_are_kept_together(lib: ctypes.CDLL, name: str) -> None:
    scores = noise(300, 700, scale=1.5).round()  # a handful of values
    asked = asking(300, **{**FILTERS[name], "top_k": min(FILTERS[name].get("top_k", 0), 699)})
    right = expected(scores, asked)
    found = sample(lib, scores, asked)
    compared = [i for i, token in enumerate(right) if token is not None]
    assert len(compared) >= 240
    assert [found[i] for i in compared] == [right[i] for i in compared]


@pytest.mark.parametrize("order", ["ascending", "descending", "flat"])
@pytest.mark.parametrize("top_k", [0, 7, 3000, 19999])
@pytest.mark.parametrize("top_p", [1.0, 0.6])
def test_sorted_and_flat_rows(lib: ctypes.CDLL, order: str, top_k: int, top_p: float) -> None:
    scores = noise(1, 20000, scale=2.0).sort().values.repeat(12, 1)
    scores = {"ascending": scores, "descending": scores.flip(1), "flat": 0 * scores}[order]
    asked = asking(12, top_k=top_k, top_p=top_p)
    right = expected(scores, asked)
    found = sample(lib, scores, asked)
    assert all(one == two for one, two in zip(found, right, strict=True) if two is not None)
    assert sum(one is not None for one in right) >= 9


def test_tokens_that_are_ruled_out_are_never_drawn(lib: ctypes.CDLL) -> None:
    scores = torch.full((200, 3000), -torch.inf)
    scores[:, [8, 900, 2999]] = torch.tensor([0.0, -1.0, 0.5])
    for name, filters in FILTERS.items():
        asked = asking(200, **filters)
        asked["uniforms"][:4] = [[0, 0], [0, 1 - 2**-24], [1 - 2**-24, 0], [1 - 2**-24] * 2]
        assert set(sample(lib, scores, asked)) <= {8, 900, 2999}, name


@pytest.mark.parametrize("scale", [1e-30, 1e30, 1e38])
def test_tiny_and_huge_scores_give_tokens(lib: ctypes.CDLL, scale: float) -> None:
    scores = (noise(40, 1200, scale=1.0).clamp(-3, 3) * scale).clamp(-3e38, 3e38)
    for name, filters in FILTERS.items():
        for temperature in (1.2e-38, 1.0, 1e30):
            asked = asking(40, **{**filters, "temperature": temperature})
            found = sample(lib, scores, asked)
            assert ((found >= 0) & (found < 1200)).all(), name
            if scale / temperature > 1e20:  # only the highest are left
                kept = scores[torch.arange(40), torch.from_numpy(found)]
                assert torch.equal(kept, scores.amax(-1)), name


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_rows_without_a_finite_highest_disturb_no_other(lib: ctypes.CDLL, bad: float) -> None:
    scores = noise(6, 1200)
    filters = [FILTERS["all"]] * 6
    asked = asking(6, **filters[0])
    before = sample(lib, scores, asked)
    scores[2] = bad
    scores[4, 7] = torch.nan
    after = sample(lib, scores, asked)
    good = [0, 1, 3, 5]
    assert (after[good] == before[good]).all()
    assert after[[2, 4]].tolist() == [0, 0]


def test_only_the_places_asked_for_are_drawn_each_with_its_own_filters(lib: ctypes.CDLL) -> None:
    scores, names = noise(2 * len(FILTERS), 1200), list(FILTERS)
    alone = []
    for i, name in enumerate(names):
        one = asking(1, seed=i, **{**FILTERS[name], "top_k": FILTERS[name].get("top_k", 0) % 1200})
        alone.append({**one, "places": np.array([2 * i + 1])})
    together = {key: np.concatenate([one[key] for one in alone]) for key in alone[0]}
    assert sample(lib, scores, together).tolist() == [
        int(sample(lib, scores, one)[0]) for one in alone
    ]


@pytest.mark.parametrize("name", ["none", "top-k", "top-k and top-p", "top-p", "min-p"])
def test_tokens_are_drawn_as_often_as_their_probability_says(lib: ctypes.CDLL, name: str) -> None:
    row = torch.full((1200,), -torch.inf)
    row[torch.randperm(1200, generator=torch.Generator().manual_seed(3))[:20]] = noise(
        1, 20, scale=0.7
    )[0]
    times = 4000
    asked = {**asking(times, seed=5, **{**FILTERS[name], "top_k": FILTERS[name].get("top_k", 0)})}
    asked["places"] = np.zeros(times)
    counts = np.bincount(sample(lib, row[None], asked), minlength=1200)
    filters = (int(asked["top_k"][0]), float(asked["top_p"][0]), float(asked["min_p"][0]))
    weights = kept_weights(row.double().numpy(), *filters)
    assert weights is not None
    share = weights / weights.sum() * times
    assert counts[share == 0].sum() == 0
    some = share > 0
    statistic = ((counts[some] - share[some]) ** 2 / share[some]).sum()
    freedom = some.sum() - 1
    assert freedom >= 2
    assert abs(statistic - freedom) / (2 * freedom) ** 0.5 < 4
