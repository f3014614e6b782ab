import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from engine.platform import SoloCommunicator
from engine.runner.agreement import Agreement
from engine.runner.memory import Ledger


class Threads(SoloCommunicator):
    """The collectives that agreement needs, between threads of one process."""

    def __init__(self, rank: int, meeting: threading.Barrier, table: list[torch.Tensor]) -> None:
        self.rank, self.size = rank, len(table)
        self._meeting, self._table = meeting, table

    def all_gather(self, x: torch.Tensor, dim: int = -1) -> torch.Tensor:
        return torch.cat(self._exchange(x), dim)

    def broadcast(self, x: torch.Tensor, source: int = 0) -> torch.Tensor:
        return self._exchange(x)[source]

    def _exchange(self, x: torch.Tensor) -> list[torch.Tensor]:
        self._table[self.rank] = x
        self._meeting.wait(20)
        parts = list(self._table)
        self._meeting.wait(20)
        return parts


@pytest.fixture
def three() -> list[Agreement]:
    meeting, table = threading.Barrier(3), [torch.empty(0)] * 3
    return [Agreement(Threads(rank, meeting, table), "cpu") for rank in range(3)]


def test_ranks_agree_on_the_least_number(three: list[Agreement]) -> None:
    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(Agreement.least, three, [40, 7, 2**31 - 1])) == [7, 7, 7]


def test_a_condition_holds_only_where_it_does_for_every_rank(three: list[Agreement]) -> None:
    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(Agreement.all, three, [True, True, False])) == [False] * 3
        assert list(threads.map(Agreement.all, three, [True, True, True])) == [True] * 3


def test_every_rank_goes_on_with_the_tokens_of_rank_0(three: list[Agreement]) -> None:
    tokens = [torch.tensor([5, 199_999]), torch.tensor([5, 6]), torch.tensor([7, 199_999])]
    with ThreadPoolExecutor(3) as threads:
        for found in threads.map(Agreement.tokens, three, tokens):
            assert found.tolist() == [5, 199_999]
            assert found.dtype == torch.int64


def test_alone_one_agrees_at_once() -> None:
    alone = Agreement(SoloCommunicator(), "meta")  # where nothing could be computed
    tokens = torch.tensor([3])
    assert alone.least(12) == 12
    assert alone.all(True)
    assert alone.tokens(tokens) is tokens


def test_a_ledger_that_is_cut_says_why() -> None:
    ledger = Ledger(
        total=1000,
        others=0,
        weights=100,
        runtime=0,
        activations=0,
        kv=500,
        num_blocks=50,
        block_size=16,
        limited_by="all that fits",
    )
    assert ledger.cut(50) is ledger
    cut = ledger.cut(20)
    assert (cut.num_blocks, cut.kv, cut.reserve) == (20, 200, 700)
    assert "20 blocks, 320 tokens; all that fits another rank" in str(cut)
