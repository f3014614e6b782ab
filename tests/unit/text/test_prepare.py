from dataclasses import replace

import pytest
from counting_engine import CONTEXT, counting

from engine.errors import RequestError
from engine.facts import EngineFacts
from engine.params import SamplingParams
from engine.text import Tokenizer, prepare

PARAMS = SamplingParams()


@pytest.fixture
def facts(bytewise: Tokenizer) -> EngineFacts:
    facts = counting({}).facts
    return replace(facts, model=replace(facts.model, vocab_size=bytewise.vocab_size))


def test_text_is_tokenized_and_ids_are_taken_as_they_are(
    facts: EngineFacts, bytewise: Tokenizer
) -> None:
    text = prepare("abc", PARAMS, facts=facts, tokenizer=bytewise, id="x", cache_salt="s")
    assert (text.id, text.prompt, text.cache_salt) == ("x", tuple(b"abc"), "s")
    ids = prepare([5, 6], PARAMS, facts=facts, tokenizer=None, priority=-1)
    assert (ids.prompt, ids.priority) == ((5, 6), -1)
    other = prepare([5, 6], PARAMS, facts=facts, tokenizer=None)
    assert other.id != ids.id


@pytest.mark.parametrize("prompt", ["", [], ()])
def test_an_empty_prompt_is_refused(
    facts: EngineFacts, bytewise: Tokenizer, prompt: str | list[int]
) -> None:
    with pytest.raises(RequestError, match="empty") as caught:
        prepare(prompt, PARAMS, facts=facts, tokenizer=bytewise)
    assert caught.value.parameter == "prompt"


@pytest.mark.parametrize("id", [-1, 10**6, 2**80, True, 1.0, "1", None])
def test_what_is_not_in_the_vocabulary_is_refused(facts: EngineFacts, id: object) -> None:
    with pytest.raises(RequestError, match="token id") as caught:
        prepare([1, id], PARAMS, facts=facts, tokenizer=None)  # type: ignore[list-item]
    assert caught.value.parameter == "prompt"
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("params", "parameter"),
    [
        (SamplingParams(allowed_token_ids=(1, 10**6)), "allowed_token_ids"),
        (SamplingParams(stop_token_ids=(-1,)), "stop_token_ids"),
        (SamplingParams(logit_bias={10**6: 1.0}), "logit_bias"),
        (SamplingParams(bad_token_ids=((1,), (10**6,))), "bad_token_ids"),
    ],
)
def test_ids_in_parameters_are_checked_too(
    facts: EngineFacts, params: SamplingParams, parameter: str
) -> None:
    with pytest.raises(RequestError) as caught:
        prepare([1], params, facts=facts, tokenizer=None)
    assert caught.value.parameter == parameter


def test_a_prompt_must_leave_room_for_a_token(facts: EngineFacts) -> None:
    open_end = SamplingParams(max_tokens=None)
    prepare([1] * (CONTEXT - 1), open_end, facts=facts, tokenizer=None)
    with pytest.raises(RequestError, match=f"maximum context length is {CONTEXT} tokens") as caught:
        prepare([1] * CONTEXT, open_end, facts=facts, tokenizer=None)
    assert caught.value.parameter == "prompt"


def test_prompt_and_output_together_must_fit(facts: EngineFacts) -> None:
    fits = SamplingParams(max_tokens=CONTEXT - 10)
    prepare([1] * 10, fits, facts=facts, tokenizer=None)
    with pytest.raises(RequestError, match=f"maximum context length is {CONTEXT} tokens") as caught:
        prepare([1] * 11, fits, facts=facts, tokenizer=None)
    assert caught.value.parameter == "max_tokens"
    least = SamplingParams(max_tokens=None, min_tokens=CONTEXT)
    with pytest.raises(RequestError, match="maximum context length") as caught:
        prepare([1], least, facts=facts, tokenizer=None)
    assert caught.value.parameter == "min_tokens"


def test_an_enormous_text_is_refused_without_being_tokenized(
    facts: EngineFacts, bytewise: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bytewise, "encode", lambda *args, **kwargs: pytest.fail("was tokenized"))
    with pytest.raises(RequestError, match="maximum context length"):
        prepare("a" * 1_000_000, PARAMS, facts=facts, tokenizer=bytewise)


@pytest.mark.parametrize(
    ("prompt", "params", "parameter"),
    [
        ("text", PARAMS, "prompt"),
        ([1], SamplingParams(stop=("x",)), "stop"),
        ([1], SamplingParams(bad_words=("x",)), "bad_words"),
    ],
)
def test_without_a_tokenizer_whatever_is_text_is_refused(
    facts: EngineFacts, prompt: str | list[int], params: SamplingParams, parameter: str
) -> None:
    with pytest.raises(RequestError, match="has no tokenizer") as caught:
        prepare(prompt, params, facts=facts, tokenizer=None)
    assert caught.value.parameter == parameter


def test_bad_words_are_banned_at_the_start_and_inside_a_text(
    facts: EngineFacts, bytewise: Tokenizer
) -> None:
    params = SamplingParams(bad_words=("cat", " dog"), bad_token_ids=((9,),))
    found = prepare([1], params, facts=facts, tokenizer=bytewise).params.bad_token_ids
    assert found == ((9,), *(tuple(word) for word in (b"cat", b" cat", b"dog", b" dog")))
