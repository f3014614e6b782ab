"""Masks, bias, penalties and filters against transformers' own, in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.ops.filters import _GROUP

from .oracle import expected_probabilities
from .rig import ask, distribution, tokens

SIZE = 48
TOKENS = [5, 9, 5, 2, 30, 7, 5, 30, 11, 2, 9]  # the first four are the prompt


def noise(size=SIZE, seed=0, scale=3.0):
    return scale * torch.randn(size, generator=torch.Generator().manual_seed(seed))


def check(asks):
    found = distribution(asks)
    for row, one in zip(found, asks, strict=True):
        expected = expected_probabilities(
            one.logits, one.params, one.tokens, one.num_prompt, one.stop_ids
        )
        assert torch.equal(row > 0, expected > 0)
        torch.testing.assert_close(row.double(), expected, atol=2e-6, rtol=1e-4)


FEATURES = {
    "none": {},
    "temperature": {"temperature": 0.3},
    "a hot one": {"temperature": 20.0},
    "top-k": {"top_k": 5},
    "top-k of one": {"top_k": 1},
    "top-k beyond the vocabulary": {"top_k": 1000},
    "top-k off": {"top_k": -1},
    "top-p": {"top_p": 0.7},
    "a narrow top-p": {"top_p": 1e-9},
    "a top-p that float32 takes for 0": {"top_p": 1e-300},
    "the same after a top-k": {"top_p": 1e-300, "top_k": 5},
    "a wide top-p": {"top_p": 0.9999},
    "min-p": {"min_p": 0.1},
    "min-p of one": {"min_p": 1.0},
    "top-k, then top-p": {"top_k": 8, "top_p": 0.8},
    "all filters": {"temperature": 1.5, "top_k": 20, "top_p": 0.95, "min_p": 0.05},
    "allowed ids": {"allowed_token_ids": (3, 5, 8, 13, 21)},
    "bad words": {"bad_token_ids": ((4,), (2, 9, 6), (8, 9, 6), (9, 3), (5, 9, 17), (30, 30))},
    "logit bias": {"logit_bias": {0: 4.0, 17: -3.5, 47: 10.0}},
    "repetition penalty": {"repetition_penalty": 1.7},
    "repetition encouraged": {"repetition_penalty": 0.4},
    "presence penalty": {"presence_penalty": 1.5},
    "frequency penalty": {"frequency_penalty": -0.7},
    "min tokens not reached": {"min_tokens": 8},
    "min tokens reached": {"min_tokens": 7},
    "everything": {
        "temperature": 0.8,
        "top_k": 30,
        "top_p": 0.97,
        "min_p": 0.001,
        "logit_bias": {5: 2.0, 2: -1.0, 40: 3.0},
        "allowed_token_ids": (*range(0, 48, 2), 5, 9, 11),
        "bad_token_ids": ((4,), (9, 6), (2, 9, 30)),
        "repetition_penalty": 1.2,
        "presence_penalty": 0.4,
        "frequency_penalty": 0.3,
        "min_tokens": 9,
    },
}


def asked(name, seed=0):
    return ask(noise(seed=seed), TOKENS, 4, seed, stop_ids=(1, 6, 11), **FEATURES[name])


@pytest.mark.parametrize("name", FEATURES)
def test_a_feature_alone_gives_the_expected_distribution(name):
    check([asked(name, seed) for seed in range(3)])


def test_features_mixed_in_one_step_give_the_expected_distributions():
    check([asked(name, seed) for seed, name in enumerate(FEATURES)])


@settings(max_examples=40, deadline=None)
@given(
    names=st.lists(st.sampled_from(list(FEATURES)), min_size=1, max_size=6),
    seed=st.integers(0, 110),
)
def test_any_mixture_gives_the_expected_distributions(names, seed):
    check([asked(name, seed + i) for i, name in enumerate(names)])


@pytest.mark.parametrize("size", [2, 511, 512, 513, 5000])
@pytest.mark.parametrize("top_k", [0, 100])
def test_top_p_finds_the_nucleus_of_vocabularies_of_every_size(size, top_k):
    asks = [
        ask(noise(size, seed), top_p=top_p, top_k=top_k)
        for seed, top_p in enumerate((0.05, 0.5, 0.9, 0.99, 0.999))
    ]
    check(asks)


def test_a_top_p_that_float32_takes_for_one_removes_nothing():
    found = distribution([ask(noise(5000, scale=1.0), top_p=1 - 1e-12)])[0]
    torch.testing.assert_close(found.double(), noise(5000, scale=1.0).double().softmax(-1))


def test_more_rows_than_a_group_find_their_nuclei():
    check([ask(noise(600, seed), top_p=0.3 + seed / 60) for seed in range(2 * _GROUP + 3)])


def test_tokens_tied_with_the_last_one_kept_are_kept():
    logits = torch.tensor([1.0, 2.0, 1.0, 0.0, 1.0])
    kept = [True, True, True, False, True]
    for params in ({"top_k": 2}, {"top_p": 0.5}, {"top_k": 2, "top_p": 0.9}):
        assert (distribution([ask(logits, **params)])[0] > 0).tolist() == kept


def test_the_coldest_temperature_and_extreme_penalties_stay_numbers():
    logits = noise()
    cold = ask(logits, temperature=1e-300)
    strong = ask(20 * logits, TOKENS, 4, repetition_penalty=1e-300)
    found = distribution([cold, strong])
    assert found.isfinite().all()
    torch.testing.assert_close(found.sum(-1), torch.ones(2))
    assert found[0].argmax() == logits.argmax()
    assert found[0].max() == 1


def test_penalties_and_bans_look_no_further_than_a_requests_own_tokens():
    # The history goes on with token 1 behind the request's last; here the bad word would end so.
    logits = noise()
    features = {"presence_penalty": 2.0, "repetition_penalty": 3.0, "bad_token_ids": ((1, 8),)}
    check([ask(logits, TOKENS, 4, **features), ask(logits, [*TOKENS, 3, 3], 4, **features)])


def test_a_bad_word_longer_than_the_request_bans_nothing():
    check([ask(noise(), [9], 1, bad_token_ids=((9, 9, 6), (5, 9, 7))), asked("bad words")])


def test_a_request_without_output_has_no_output_to_penalize():
    check([ask(noise(), TOKENS, len(TOKENS), presence_penalty=2.0, frequency_penalty=2.0)])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_bans_that_leave_nothing_yield_to_what_is_allowed(temperature):
    both = ask(
        noise(),
        TOKENS,
        4,
        temperature=temperature,
        allowed_token_ids=(6, 20),
        bad_token_ids=((20,), (2, 9, 20), (7, 20)),
        stop_ids=(6,),
        min_tokens=100,
    )
    everything = ask(
        noise(), temperature=temperature, bad_token_ids=tuple((i,) for i in range(SIZE))
    )
    found = distribution([both, everything])
    expected = noise()[[6, 20]].double().softmax(-1)
    if temperature:
        torch.testing.assert_close(found[0, [6, 20]].double(), expected, atol=1e-6, rtol=0)
        torch.testing.assert_close(found[1].double(), noise().double().softmax(-1))
    assert found[0, [6, 20]].sum() == pytest.approx(1)
    assert tokens([both])[0] in (6, 20)


def test_a_ban_that_leaves_something_holds_in_the_same_step():
    yields = ask(noise(), allowed_token_ids=(6,), bad_token_ids=((6,),))
    holds = ask(noise(), allowed_token_ids=(6, 7), bad_token_ids=((6,),))
    found = distribution([yields, holds])
    assert found[0].nonzero().flatten().tolist() == [6]
    assert found[1].nonzero().flatten().tolist() == [7]


def test_an_end_of_sequence_outside_the_vocabulary_is_no_obstacle():
    check([ask(noise(), TOKENS, 4, min_tokens=50, stop_ids=(6,))])
    padded = distribution([ask(noise(), TOKENS, 4, min_tokens=50, stop_ids=(6, SIZE + 3))])
    assert torch.equal(
        padded, distribution([ask(noise(), TOKENS, 4, min_tokens=50, stop_ids=(6,))])
    )
