import pytest
import torch

from engine_triton.architecture import Architecture
from engine_triton.sampling.argmax import Argmax


@pytest.fixture(scope="module")
def argmax(architecture: Architecture) -> Argmax:
    return Argmax(architecture)


def first_highest(scores: torch.Tensor) -> list[int]:
    return [row.index(max(row)) for row in scores.tolist()]


@pytest.mark.parametrize("rows", [1, 3, 9])  # one row is split among programs, nine are not
@pytest.mark.parametrize("vocab", [1, 4095, 9000])
def test_the_lowest_id_of_the_highest_score_is_found(argmax, rows, vocab) -> None:
    random = torch.Generator().manual_seed(vocab)
    for scores in (
        torch.randn(rows, vocab, generator=random),
        torch.randn(rows, vocab, generator=random).round(),  # many are equal
        torch.full((rows, vocab), -torch.inf),
        -torch.rand(rows, vocab, generator=random).mul(3).floor(),  # 0 and -0
    ):
        highest, ids = argmax(scores)
        assert torch.equal(highest, scores.amax(-1))
        assert ids.dtype == torch.int64
        assert ids.tolist() == first_highest(scores)


def test_a_nan_anywhere_is_the_highest_and_disturbs_no_other_row(argmax) -> None:
    scores = torch.randn(4, 9000)
    scores[1, 8999] = torch.nan
    scores[2, 0] = -torch.nan
    scores[2, 1] = torch.inf
    highest, ids = argmax(scores)
    assert highest.isnan().tolist() == [False, True, True, False]
    assert ids.tolist()[1:3] == [8999, 0]
    assert ids[[0, 3]].tolist() == first_highest(scores[[0, 3]])


def test_infinity_is_a_score(argmax) -> None:
    scores = torch.zeros(2, 700)
    scores[0, 600] = torch.inf
    scores[1, 100] = -torch.inf
    highest, ids = argmax(scores)
    assert (highest.tolist(), ids.tolist()) == ([torch.inf, 0.0], [600, 0])


def test_rows_of_a_padded_vocabulary_and_columns_are_read_where_they_lie(argmax) -> None:
    padded = torch.randn(3, 1024)
    padded[:, 1000:] = 99.0
    assert argmax(padded[:, :1000])[1].tolist() == first_highest(padded[:, :1000])
    turned = torch.randn(700, 3).T
    assert argmax(turned)[1].tolist() == first_highest(turned)


def test_no_rows_have_no_ids(argmax) -> None:
    highest, ids = argmax(torch.empty(0, 50))
    assert (highest.shape, ids.shape) == ((0,), (0,))
