"""Token ids that a model does not have are refused before they reach a device."""

import subprocess
import sys

import pytest

from engine.errors import RequestError
from engine.params import SamplingParams
from engine.sampling import check


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("logit_bias", {3: 1.0, 10: 1.0}),
        ("logit_bias", {-1: 1.0}),
        ("allowed_token_ids", (9, 10)),
        ("bad_token_ids", ((1,), (2, 11))),
        ("stop_token_ids", (-2,)),
    ],
)
def test_ids_outside_the_vocabulary_are_refused_by_name(name, value):
    with pytest.raises(
        RequestError, match=rf"{name} holds token id -?\d+; .* from 0 to 9"
    ) as error:
        check(SamplingParams(**{name: value}), 10)
    assert error.value.parameter == name


def test_a_bad_word_without_tokens_is_refused():
    with pytest.raises(RequestError, match="empty sequence") as error:
        check(SamplingParams(bad_token_ids=((1,), ())), 10)
    assert error.value.parameter == "bad_token_ids"


def test_ids_of_the_vocabulary_pass():
    params = SamplingParams(
        logit_bias={0: 1.0, 9: -1.0},
        allowed_token_ids=(0, 9),
        bad_token_ids=((0, 9), (9,)),
        stop_token_ids=(9,),
        top_k=1000,
        logprobs=20,
    )
    check(params, 10)


def test_checking_needs_neither_torch_nor_numpy():
    code = "import sys, engine.sampling; print({'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
