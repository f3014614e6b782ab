from hypothesis import given
from hypothesis import strategies as st

from engine import LLM, SamplingParams
from engine.runner.model_runner import largest_steps

SIZES = st.integers(1, 5000)


@given(max_tokens=SIZES, max_requests=SIZES, max_model_len=SIZES)
def test_the_steps_that_are_measured_keep_every_limit(max_tokens, max_requests, max_model_len):
    for sizes in largest_steps(max_tokens, max_requests, max_model_len):
        assert sum(sizes) <= max_tokens
        assert 1 <= len(sizes) <= max_requests
        assert all(1 <= size <= max_model_len for size in sizes)


def test_the_steps_that_are_measured_are_as_full_as_the_limits_allow():
    assert largest_steps(2048, 4, 900) == [[900, 900, 248], [512] * 4]
    assert largest_steps(100, 1, 400) == [[100], [100]]


def test_an_engine_for_one_short_request_starts_and_answers():
    with LLM(device="cpu", max_requests=1, max_model_len=100) as llm:
        found = llm.generate(["Hello", "Hi"], SamplingParams(max_tokens=5, ignore_eos=True))
    assert [len(one.outputs[0].token_ids) for one in found] == [5, 5]
