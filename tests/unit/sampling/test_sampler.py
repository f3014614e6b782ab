"""The sampler as the runner uses it: steps of mixed requests, in any order and any company."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from engine.batch import Admission
from engine.params import SamplingParams
from engine.sampling.sampler import Sampler

from .oracle import expected_probabilities
from .rig import ask, chi_square, distribution, draw_often, prepare, sample, tokens

SIZE = 1200  # two whole chunks and a rest
KINDS = {
    "greedy": {"temperature": 0.0},
    "greedy with penalties": {"temperature": 0.0, "frequency_penalty": 1.0},
    "random": {},
    "few": {"top_k": 3},
    "many": {"top_k": 700, "temperature": 2.0},
    "few of a nucleus": {"top_k": 20, "top_p": 0.8},
    "nucleus": {"top_p": 0.9, "temperature": 1.5},
    "min-p": {"min_p": 0.02},
    "penalties": {"repetition_penalty": 1.3, "presence_penalty": 0.5},
    "allowed": {"allowed_token_ids": tuple(range(100, 900)), "logprobs": 2},
    "bans": {"bad_token_ids": ((3,), (4, 5)), "min_tokens": 5},
    "bias": {"logit_bias": {7: 5.0, 1100: 2.0}, "logprobs": 4},
}


def noise(size=SIZE, seed=0, scale=3.0):
    return scale * torch.randn(size, generator=torch.Generator().manual_seed(seed))


def asked(kind, seed):
    length = 1 + seed % 9
    known = torch.randint(SIZE, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    return ask(noise(seed=seed), known, 1 + length // 2, seed << 31, stop_ids=(1,), **KINDS[kind])


def test_a_greedy_tie_goes_to_the_lowest_id():
    logits = torch.zeros(SIZE)
    logits[[40, 700, 1100]] = 2.0
    assert tokens([ask(logits, temperature=0.0)] * 3) == [40] * 3
    assert tokens([ask(logits, temperature=0.0, bad_token_ids=((40,),))]) == [700]
    assert tokens([ask(torch.zeros(SIZE), temperature=0.0)]) == [0]


@pytest.mark.parametrize("kind", ["random", "few", "few of a nucleus", "nucleus", "min-p"])
def test_tokens_are_sampled_as_often_as_their_probability_says(kind):
    logits = torch.full((SIZE,), -torch.inf)
    some = torch.randperm(SIZE, generator=torch.Generator().manual_seed(3))[:20]
    logits[some] = noise(20, seed=4, scale=0.7)
    one = ask(logits, seed=12345, **KINDS[kind])
    expected = expected_probabilities(logits, one.params, one.tokens, 1, [])
    assert 3 <= (expected > 0).sum() <= 20
    assert abs(chi_square(draw_often(one, 4000), expected)) < 4


@settings(max_examples=60, deadline=None)
@given(
    kinds=st.lists(st.sampled_from(list(KINDS)), min_size=1, max_size=7),
    seed=st.integers(0, 1000),
    shuffle=st.randoms(use_true_random=False),
)
def test_a_requests_token_depends_neither_on_neighbours_nor_on_its_row(kinds, seed, shuffle):
    asks = [asked(kind, seed + i) for i, kind in enumerate(kinds)]
    rows = shuffle.sample(range(20), len(asks))
    together = sample(asks, rows).to_host()
    probabilities = distribution(asks, rows)
    for one, choice, row in zip(asks, together, probabilities, strict=True):
        (alone,) = sample([one]).to_host()
        assert (alone.token, alone.finite) == (choice.token, True)
        assert torch.equal(distribution([one])[0] > 0, row > 0)
        assert (alone.logprobs is None) == (choice.logprobs is None)
        if alone.logprobs and choice.logprobs:
            assert choice.logprobs.rank == alone.logprobs.rank
            assert choice.logprobs.logprob == pytest.approx(alone.logprobs.logprob, abs=1e-6)
            assert [id for id, _ in choice.logprobs.top] == [id for id, _ in alone.logprobs.top]


def test_a_large_step_gives_what_each_request_gets_alone():
    kinds = list(KINDS) * 6
    asks = [asked(kind, i) for i, kind in enumerate(kinds)]
    assert tokens(asks) == [tokens([one])[0] for one in asks]


def test_a_request_admitted_anew_with_its_output_goes_on_with_the_same_tokens():
    logits = [noise(seed=i) for i in range(6)]
    params = SamplingParams(max_tokens=50, presence_penalty=0.5, min_tokens=4, top_p=0.95)

    def run(restart_after):
        known = [5, 9]
        sampler = Sampler(SIZE, 8, "cpu")
        row = 3
        sampler.admit(row, Admission(1, tuple(known), 2, params, 2**64 - 1, (1,)))
        for i, each in enumerate(logits):
            if i == restart_after:
                sampler.release(row)
                row = 6
                sampler.admit(row, Admission(9, tuple(known), 2, params, 2**64 - 1, (1,)))
            history = torch.zeros(8, 20, dtype=torch.int64)
            history[row, : len(known)] = torch.tensor(known)
            known.append(int(sampler.sample(each[None], [row], history, [len(known)]).tokens[0]))
        return known

    assert run(3) == run(None)


def test_seed_and_position_both_change_the_token():
    flat = torch.zeros(SIZE)
    by_seed = {tokens([ask(flat, seed=seed)])[0] for seed in (0, 1, 2**32, 2**64 - 1)}
    by_position = {tokens([ask(flat, [0] * length)])[0] for length in (1, 2, 3, 4)}
    assert (len(by_seed), len(by_position)) == (4, 4)


def test_a_row_may_be_sampled_at_several_lengths_in_one_step():
    logits, known = noise(), [5, 9, 4, 4]
    params = {"frequency_penalty": 1.0, "bad_token_ids": ((9, 4, int(logits.argmax())),)}
    sampler, (_, _, history, _) = prepare([ask(logits, known, 1, **params)])
    lengths = [1, 2, 3, 4]
    found = sampler.sample(logits.expand(4, -1), [0] * 4, history, lengths).tokens.tolist()
    assert found == [tokens([ask(logits, known[:n], 1, **params)])[0] for n in lengths]


def test_a_released_rows_parameters_do_not_touch_its_next_request():
    sampler, (logits, _, history, _) = prepare([asked("bias", 4)])
    sampler.release(0)
    params = SamplingParams(temperature=0.0)
    sampler.admit(0, Admission(2, (3,), 1, params, 0, ()))
    sampled = sampler.sample(logits, [0], history, [1])
    assert sampled.tokens[0] == logits[0].argmax()
    assert sampled.logprobs is None


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_that_are_not_finite_are_told_and_disturb_no_other_row(kind, bad):
    asks = [asked(kind, 1), asked(kind, 2), *(asked(each, 3) for each in KINDS)]
    expected = [each.token for each in sample(asks).to_host()]
    asks[1].logits[:] = bad
    partly = asked(kind, 5)
    partly.logits[200] = torch.nan
    choices = sample([*asks, partly]).to_host()
    assert [choice.finite for choice in choices] == [True, False, *[True] * len(KINDS), False]
    assert all(0 <= choice.token < SIZE for choice in choices)
    assert choices[1].logprobs is None
    tokens_but_one = [choice.token for choice in choices[:-1]]
    assert tokens_but_one[:1] + tokens_but_one[2:] == expected[:1] + expected[2:]


def test_what_a_mask_hides_is_told_all_the_same():
    logits = noise()
    logits[5] = torch.nan
    (choice,) = sample([ask(logits, allowed_token_ids=(1, 2), logprobs=2)]).to_host()
    assert choice.token in (1, 2)
    assert (choice.finite, choice.logprobs) == (False, None)


def test_a_logit_of_minus_infinity_rules_a_token_out_and_is_no_error():
    logits = torch.full((SIZE,), -torch.inf)
    logits[[8, 900]] = 0.0
    for params in KINDS.values():
        allowed = {"allowed_token_ids": (8, 900)} if "allowed_token_ids" in params else {}
        (choice,) = sample([ask(logits, [2, 3], 1, **{**params, **allowed})]).to_host()
        assert choice.finite
        assert choice.token in (8, 900)


class Operations(TorchDispatchMode):
    """Counts operations, and refuses those whose result the host must wait for."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        assert name not in {"_local_scalar_dense", "nonzero", "equal", "masked_select", "unique"}
        self.names.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", KINDS)
def test_sampling_never_waits_for_the_device(kind):
    sampler, arguments = prepare([asked(kind, seed) for seed in (1, 5, 8)])
    with Operations():
        sampled = sampler.sample(*arguments)
    assert len(sampled.to_host()) == 3


def test_greedy_steps_without_features_are_one_reduction():
    sampler, arguments = prepare([asked("greedy", seed) for seed in range(5)])
    with Operations() as operations:
        sampler.sample(*arguments)
    assert operations.names[0] == "max"
    assert set(operations.names[1:]) <= {
        "isfinite",
        "lt",
        "abs",
        "eq",
        "ne",
        "mul",
    }  # on one number a row


@pytest.mark.parametrize("kind", KINDS)
def test_the_callers_logits_stay_as_they_are(kind):
    sampler, arguments = prepare([asked(kind, 1), asked("greedy", 2)])
    before = arguments[0].clone()
    sampler.sample(*arguments)
    assert torch.equal(arguments[0], before)
