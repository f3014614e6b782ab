"""A sampler and the requests it serves, for the tests of this folder."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from engine.batch import Admission
from engine.params import SamplingParams
from engine.sampling.sampler import Sampled, Sampler


@dataclass
class Ask:
    """One request and the logits of its next token."""

    logits: Tensor
    params: SamplingParams
    tokens: list[int]
    num_prompt: int
    seed: int = 0
    stop_ids: list[int] = field(default_factory=list)


def ask(logits: Tensor, tokens=(0,), num_prompt=1, seed=0, stop_ids=(), **params) -> Ask:
    params = SamplingParams(**{"max_tokens": 1000, **params})
    return Ask(logits, params, list(tokens), num_prompt, seed, list(stop_ids))


def prepare(asks: list[Ask], rows: list[int] | None = None):
    """A new sampler with the requests in these rows, and the arguments of its `sample`.

    Where a request's tokens end, the history goes on with an earlier occupant's.
    """
    rows = list(range(len(asks))) if rows is None else rows
    sampler = Sampler(len(asks[0].logits), max(rows) + 1, "cpu")
    longest = max(len(one.tokens) for one in asks)
    history = torch.full((max(rows) + 1, longest + 3), 1, dtype=torch.int32)
    for row, one in zip(rows, asks, strict=True):
        history[row, : len(one.tokens)] = torch.tensor(one.tokens)
        sampler.admit(
            row,
            Admission(
                key=row,
                tokens=tuple(one.tokens),
                num_prompt=one.num_prompt,
                params=one.params,
                seed=one.seed,
                stop_ids=tuple(one.stop_ids),
            ),
        )
    logits = torch.stack([one.logits for one in asks])
    return sampler, (logits, rows, history, [len(one.tokens) for one in asks])


def sample(asks: list[Ask], rows: list[int] | None = None) -> Sampled:
    sampler, arguments = prepare(asks, rows)
    return sampler.sample(*arguments)


def distribution(asks: list[Ask], rows: list[int] | None = None) -> Tensor:
    sampler, arguments = prepare(asks, rows)
    return sampler.distribution(*arguments)


def tokens(asks: list[Ask], rows: list[int] | None = None) -> list[int]:
    return sample(asks, rows).tokens.tolist()


def draw_often(one: Ask, times: int) -> Tensor:
    """How often each token is drawn when only the position differs: int64 [V]."""
    sampler, (logits, _, history, _) = prepare([one])
    history = torch.cat((history, torch.zeros(1, times, dtype=history.dtype)), dim=1)
    lengths = [len(one.tokens) + i for i in range(times)]
    drawn = sampler.sample(logits.expand(times, -1), [0] * times, history, lengths).tokens
    return drawn.bincount(minlength=logits.shape[1])


def chi_square(counts: Tensor, probabilities: Tensor) -> float:
    """The statistic's distance from its mean, in standard deviations of its distribution."""
    expected = probabilities.double() * counts.sum()
    wanted = expected > 0
    assert counts[~wanted].sum() == 0
    assert expected[wanted].min() >= 5, "too few draws for the test"
    statistic = ((counts[wanted] - expected[wanted]) ** 2 / expected[wanted]).sum().item()
    freedom = int(wanted.sum()) - 1
    return (statistic - freedom) / (2 * freedom) ** 0.5
