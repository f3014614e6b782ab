import numpy as np
import pytest
import torch

from engine_triton.architecture import Architecture
from engine_triton.sampling.penalties import Penalize

VOCAB = 1100
LENGTHS, FIRSTS = [1, 1024, 1025, 1090], [0, 1030, 3, 1089]


@pytest.fixture(scope="module")
def penalize(architecture: Architecture) -> Penalize:
    return Penalize(architecture)


def penalized_64(scores, tokens, length, first, repetition, frequency, presence):
    """The formulas, one token of the vocabulary after the other."""
    found = scores.double().clone()
    for token in set(tokens[:length].tolist()):
        score = found[token] * repetition if found[token] < 0 else found[token] / repetition
        times = tokens[first:length].tolist().count(token)
        found[token] = score - frequency * times - presence * (times > 0)
    return found.clamp(max=torch.finfo(torch.float32).max)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize(
    "numbers",
    [(1.0, 0.0, 0.0), (1.7, 0.0, 0.0), (1.0, 0.6, 0.0), (1.0, 0.0, 2.0), (0.4, -0.3, 0.9)],
)
def test_scores_of_tokens_that_occurred_follow_the_formulas(penalize, numbers, dtype) -> None:
    random = torch.Generator().manual_seed(1)
    scores = 3 * torch.randn(8, VOCAB, generator=random)
    scores[0, ::9] = -torch.inf
    tokens = torch.randint(1060, (6, 1100), generator=random, dtype=dtype)
    numbers_32 = [float(np.float32(each)) for each in numbers]
    before, places, rows = scores.clone(), np.array([0, 3, 4, 7]), np.array([5, 0, 2, 2])
    columns = [np.full(4, each, dtype=np.float32) for each in numbers]
    found = penalize(scores, tokens, places, rows, np.array(LENGTHS), np.array(FIRSTS), *columns)
    assert found is scores
    for place, row, length, first in zip(places, rows, LENGTHS, FIRSTS, strict=True):
        exact = penalized_64(before[place], tokens[row], length, first, *numbers_32)
        torch.testing.assert_close(found[place].double(), exact, rtol=1e-6, atol=1e-6)
    others = [1, 2, 5, 6]
    assert torch.equal(found[others], before[others])


def test_a_score_beyond_float32_is_its_largest_number(penalize) -> None:
    scores, tokens = torch.full((1, 5), 10.0), torch.tensor([[2]])
    one, none = np.array([1]), np.zeros(1, dtype=np.float32)
    at = np.array([0])
    penalize(scores, tokens, at, at, one, one, np.array([1e-38], dtype=np.float32), none, none)
    assert scores[0, 2] == torch.finfo(torch.float32).max
    assert scores[0, [0, 1, 3, 4]].tolist() == [10.0] * 4


def test_padding_behind_a_vocabulary_stays_as_it_is(penalize) -> None:
    wide, tokens = torch.full((1, 64), 10.0), torch.tensor([[0, 49]])
    two, none = np.array([2]), np.zeros(1, dtype=np.float32)
    at = np.array([0])
    penalize(wide[:, :50], tokens, at, at, two, two, np.array([2.0], dtype=np.float32), none, none)
    assert wide[0, [0, 49]].tolist() == [5.0, 5.0]
    assert (wide == 5.0).sum() == 2
