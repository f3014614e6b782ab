import pickle
from typing import Any

import pytest

from engine.errors import RequestError
from engine.params import MAX_LOGPROBS, SamplingParams

NAN = float("nan")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 0),
        ("n", 129),
        ("temperature", -0.1),
        ("temperature", NAN),
        ("temperature", float("inf")),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("top_p", NAN),
        ("top_k", -2),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("repetition_penalty", 0.0),
        ("presence_penalty", 2.1),
        ("frequency_penalty", -2.1),
        ("max_tokens", 0),
        ("min_tokens", -1),
        ("min_tokens", 17),  # over the default of max_tokens
        ("logprobs", -1),
        ("logprobs", MAX_LOGPROBS + 1),
        ("prompt_logprobs", MAX_LOGPROBS + 1),
        ("seed", 2**64),
        ("seed", -(2**63) - 1),
        ("logit_bias", {3: 101.0}),
        ("logit_bias", {3: NAN}),
        ("allowed_token_ids", ()),
        ("stop", ("",)),
    ],
)
def test_a_value_out_of_range_is_refused_naming_the_parameter(name: str, value: Any) -> None:
    with pytest.raises(RequestError, match=name) as caught:
        SamplingParams(**{name: value})
    assert caught.value.parameter == name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 128),
        ("temperature", 0.0),
        ("top_p", 1.0),
        ("top_k", -1),
        ("min_p", 1.0),
        ("presence_penalty", -2.0),
        ("max_tokens", None),
        ("min_tokens", 16),
        ("logprobs", 0),
        ("prompt_logprobs", MAX_LOGPROBS),
        ("seed", 2**64 - 1),
        ("seed", -(2**63)),
        ("logit_bias", {3: -100.0}),
        ("allowed_token_ids", (1,)),
    ],
)
def test_the_ends_of_a_range_belong_to_it(name: str, value: Any) -> None:
    assert vars_of(SamplingParams(**{name: value}))[name] == value


def test_temperature_zero_is_greedy_and_nothing_else_is() -> None:
    assert SamplingParams(temperature=0.0).greedy
    assert not SamplingParams(temperature=0.01).greedy


def test_parameters_survive_the_way_to_another_process() -> None:
    params = SamplingParams(stop=("a",), logit_bias={1: 2.0}, seed=3, max_tokens=None)
    assert pickle.loads(pickle.dumps(params)) == params


def vars_of(params: SamplingParams) -> dict[str, Any]:
    return {name: getattr(params, name) for name in params.__dataclass_fields__}
