"""Tokens are those of the core's operation, for the same numbers: it sorts, this searches."""

import numpy as np
import pytest
import torch

from engine.errors import UnsupportedError
from engine.ops import sampling as reference
from engine.platform import OpTable
from engine_triton import sampling
from engine_triton.architecture import Architecture
from engine_triton.sampling.sample import MAX_VOCAB, Sample

ROWS = 3


@pytest.fixture(scope="module")
def sample(architecture: Architecture) -> Sample:
    return Sample(architecture)


@pytest.fixture(autouse=True)
def poisoned(monkeypatch) -> None:
    """New memory holds what was never written: it must not be read."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(-77))


def settings(rows=ROWS, seed=0, *, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    random = np.random.default_rng(seed)
    return (
        np.full(rows, temperature, dtype=np.float32),
        np.full(rows, top_k, dtype=np.int64),
        np.full(rows, top_p, dtype=np.float32),
        np.full(rows, min_p, dtype=np.float32),
        random.random((rows, 2), dtype=np.float32),
    )


def normal(vocab: int, rows: int = ROWS, scale: float = 3.0) -> torch.Tensor:
    random = torch.Generator().manual_seed(vocab)
    return scale * torch.randn(rows, vocab, generator=random)


def check(sample: Sample, scores: torch.Tensor, asked, places=None) -> None:
    places = np.arange(len(scores)) if places is None else places
    arguments = (scores, scores.amax(-1), places, *asked)
    found = sample(*arguments)
    assert found.dtype == torch.int64
    assert found.tolist() == reference.sample(*arguments).tolist()


FILTERS = {
    "none": {},
    "cold": {"temperature": 0.3},
    "hot": {"temperature": 4.0},
    "top-k": {"top_k": 9},
    "the best alone": {"top_k": 1},
    "top-k of more than there are chunks": {"top_k": 100},
    "top-p": {"top_p": 0.8},
    "top-p of a flat row": {"top_p": 0.95, "temperature": 20.0},
    "next to no top-p": {"top_p": 1e-6},
    "nearly all of top-p": {"top_p": 0.9999999},
    "min-p": {"min_p": 0.05},
    "min-p of the best alone": {"min_p": 1.0},
    "all": {"temperature": 0.9, "top_k": 40, "top_p": 0.9, "min_p": 0.01},
    "top-k and top-p": {"temperature": 0.6, "top_k": 20, "top_p": 0.95},
}
TIES = {name: FILTERS[name] for name in ("top-k", "top-p", "min-p", "top-k and top-p")}


@pytest.mark.parametrize("asked", FILTERS.values(), ids=FILTERS)
@pytest.mark.parametrize("vocab", [1, 513, 2100])
def test_tokens_are_those_of_the_reference(sample, vocab, asked) -> None:
    asked = asked | {"top_k": min(asked.get("top_k", 0), vocab)}
    check(sample, normal(vocab), settings(**asked))


@pytest.mark.parametrize("asked", TIES.values(), ids=TIES)
def test_equal_scores_are_kept_or_left_out_together(sample, asked) -> None:
    check(sample, normal(1200, scale=1.0).round(), settings(**asked))


@pytest.mark.parametrize("asked", TIES.values(), ids=TIES)
def test_a_row_of_equal_scores_is_more_than_there_is_room_for(sample, asked) -> None:
    check(sample, torch.full((ROWS, 1100), -2.5), settings(**asked))


def test_masked_tokens_are_never_drawn(sample) -> None:
    scores = normal(1500)
    scores[:, 7:] = -torch.inf
    for asked in TIES.values():
        check(sample, scores, settings(**asked))


def test_each_row_has_its_own_settings(sample) -> None:
    rows = [settings(1, seed, **filters) for seed, filters in enumerate(FILTERS.values())]
    asked = tuple(np.concatenate(column) for column in zip(*rows, strict=True))
    scores = normal(2000, 2 * len(FILTERS))
    check(sample, scores, asked, np.arange(len(FILTERS)) * 2 + 1)


def test_rows_that_are_no_numbers_get_some_id_and_disturb_no_other(sample) -> None:
    scores = normal(1000, 8)
    scores[1], scores[3], scores[5, 4], scores[7, 9] = torch.nan, -torch.inf, torch.inf, torch.nan
    for filters in TIES.values():
        asked = settings(8, **filters)
        everywhere, places = np.arange(8), np.array([0, 2, 4, 6])
        found = sample(scores, scores.amax(-1), everywhere, *asked)
        assert ((found >= 0) & (found < 1000)).all()
        alone = reference.sample(
            scores[places], scores[places].amax(-1), np.arange(4), *(one[places] for one in asked)
        )
        assert found[places].tolist() == alone.tolist()


def test_rows_of_a_padded_vocabulary_are_read_where_they_lie(sample) -> None:
    padded = normal(1024)
    padded[:, 1000:] = 99.0
    check(sample, padded[:, :1000], settings(top_p=0.9))


def test_tokens_are_as_frequent_as_they_are_likely(sample) -> None:
    likely = torch.tensor([0.5, 0.25, 0.125, 0.125])
    scores = likely.log().repeat(16, 1)
    *asked, _ = settings(16)
    even = np.stack((np.zeros(16), (np.arange(16) + 0.5) / 16), axis=1).astype(np.float32)
    found = sample(scores, scores.amax(-1), np.arange(16), *asked, even)
    assert torch.equal(found.bincount() / 16, likely)


def test_no_rows_draw_no_ids(sample) -> None:
    assert sample(normal(60), torch.zeros(ROWS), np.arange(0), *settings(0)).shape == (0,)


def test_a_larger_vocabulary_is_refused(architecture) -> None:
    table = OpTable()
    sampling.register(table, architecture, source="stand-in")
    with pytest.raises(UnsupportedError, match="1048577 tokens are more than 1048576"):
        table.choose("sample", dtype="float32", device="cpu", vocab_size=MAX_VOCAB + 1)
