"""Log-probabilities against float64."""

import numpy as np
import pytest
import torch

from engine.sampling.logprobs import prompt_logprobs

from .rig import ask, sample

SIZE = 700


def noise(*shape, seed=0):
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def check(found, logits, token, count):
    expected = logits.double().log_softmax(-1)
    assert found.token == token
    assert found.logprob == pytest.approx(expected[token].item(), rel=1e-6, abs=5e-6)
    assert found.rank == 1 + int((logits > logits[token]).sum())
    values, ids = expected.topk(count)
    assert [id for id, _ in found.top] == ids.tolist()
    assert [value for _, value in found.top] == pytest.approx(values.tolist(), rel=1e-6, abs=5e-6)


def test_each_row_tells_as_many_as_it_asked_and_others_tell_nothing():
    wanted = [5, None, 0, 20]
    logits = noise(4, SIZE)
    asks = [ask(logits[i], seed=i, logprobs=count) for i, count in enumerate(wanted)]
    sampled = sample(asks)
    for i, choice in enumerate(sampled.to_host()):
        assert choice.token == sampled.tokens[i]
        if wanted[i] is None:
            assert choice.logprobs is None
        else:
            check(choice.logprobs, logits[i], choice.token, wanted[i])


def test_logprobs_are_those_before_bias_masks_and_temperature():
    logits = noise(SIZE)
    last = int(logits.argmin())
    changes = {"logit_bias": {last: 100.0}, "temperature": 0.2, "repetition_penalty": 2.0}
    (choice,) = sample([ask(logits, logprobs=3, bad_token_ids=((5,),), **changes)]).to_host()
    assert choice.token == last
    check(choice.logprobs, logits, last, 3)
    assert choice.logprobs.rank == SIZE


def test_a_vocabulary_smaller_than_the_count_is_told_whole():
    logits = noise(7)
    (choice,) = sample([ask(logits, logprobs=20)]).to_host()
    check(choice.logprobs, logits, choice.token, 7)


def test_equal_logits_share_a_rank():
    logits = torch.tensor([0.0, 1.0, 1.0, 0.5])
    (choice,) = sample([ask(logits, temperature=0.0, allowed_token_ids=(2,), logprobs=0)]).to_host()
    assert (choice.token, choice.logprobs.rank) == (2, 1)


@pytest.mark.parametrize("length", [1, 64, 65, 150])
def test_prompt_logprobs_are_told_of_every_position_with_bounded_memory(length):
    hidden, weight = noise(length, 8), noise(8, SIZE, seed=1) / 10
    following = torch.randint(SIZE, (length,), generator=torch.Generator().manual_seed(2)).tolist()
    sizes = []

    def logits(rows):
        sizes.append(len(rows))
        return hidden[torch.from_numpy(rows)] @ weight

    found = prompt_logprobs(logits, np.arange(length), following, 4)
    assert sum(sizes) == length
    assert max(sizes) <= 64
    assert len(found) == length
    for one, row, token in zip(found, hidden @ weight, following, strict=True):
        check(one, row, token, 4)


def test_prompt_logprobs_of_no_positions_are_none():
    assert prompt_logprobs(lambda rows: noise(0, SIZE), np.arange(0), (), 4) == []
