"""Completions, through the official client over a real socket."""

import dataclasses
import json
from typing import Any

import openai
import pytest


def test_a_text_is_continued_for_sixteen_tokens_unless_told_otherwise(
    client: openai.OpenAI,
) -> None:
    answer = client.completions.create(model="counting/model", prompt="a")
    assert answer.object == "text_completion"
    assert answer.id.startswith("cmpl-")
    assert answer.choices[0].text == "bcdefghijklmnopq"
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 16


def test_the_default_limit_shrinks_to_what_fits_the_context(start: Any) -> None:
    server = start()
    server.engine.facts = dataclasses.replace(server.engine.facts, max_model_len=100)
    answer = server.post("/v1/completions", {"prompt": [65] * 95}).json()
    assert answer["usage"]["completion_tokens"] == 5


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("a", ["bc"]),
        (["a", "K"], ["bc", "LM"]),
        ([97], ["bc"]),
        ([[97], [75, 76]], ["bc", "MN"]),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_prompts_come_in_four_shapes(
    client: openai.OpenAI, prompt: Any, texts: list[str], stream: bool
) -> None:
    asked: dict[str, Any] = {"model": "counting/model", "prompt": prompt, "max_tokens": 2}
    found = [""] * len(texts)
    if stream:
        for chunk in client.completions.create(**asked, stream=True):
            for choice in chunk.choices:
                found[choice.index] += choice.text
    else:
        for choice in client.completions.create(**asked).choices:
            found[choice.index] += choice.text
    assert found == texts


def test_choices_are_numbered_prompt_by_prompt(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="counting/model", prompt=["a", "K"], n=2, max_tokens=1)
    assert [(each.index, each.text) for each in answer.choices] == [
        (0, "b"),
        (1, "b"),
        (2, "L"),
        (3, "L"),
    ]
    assert answer.usage.prompt_tokens == 2
    assert answer.usage.completion_tokens == 4


def test_echoed_logprobs_are_over_prompt_and_completion(client: openai.OpenAI) -> None:
    """As lm-eval asks for them, to score a text."""
    (choice,) = client.completions.create(
        model="counting/model", prompt="abc", max_tokens=1, echo=True, logprobs=1
    ).choices
    assert choice.text == "abcd"
    assert choice.logprobs.tokens == ["a", "b", "c", "d"]
    assert choice.logprobs.token_logprobs == [None, -0.5, -0.5, -0.5]
    assert choice.logprobs.top_logprobs == [None, {"b": -0.5}, {"c": -0.5}, {"d": -0.5}]
    assert choice.logprobs.text_offset == [0, 1, 2, 3]


def test_a_prompt_can_be_scored_without_writing_anything(server: Any) -> None:
    asked = {"prompt": "abc", "max_tokens": 0, "echo": True, "logprobs": 0}
    answer = server.post("/v1/completions", asked).json()
    assert answer["choices"][0]["text"] == "abc"
    assert answer["choices"][0]["logprobs"]["tokens"] == ["a", "b", "c"]
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 0


@pytest.mark.parametrize("echo", [False, True])
def test_streamed_pieces_join_to_the_whole_answer(client: openai.OpenAI, echo: bool) -> None:
    asked: dict[str, Any] = {
        "model": "counting/model",
        "prompt": "abc",
        "max_tokens": 8,
        "logprobs": 2,
        "echo": echo,
    }
    (whole,) = client.completions.create(**asked).choices
    pieces = [chunk.choices[0] for chunk in client.completions.create(**asked, stream=True)]
    assert "".join(piece.text for piece in pieces) == whole.text
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        joined = [one for piece in pieces for one in getattr(piece.logprobs, name)]
        assert joined == getattr(whole.logprobs, name)


def test_one_choice_may_stop_while_the_others_go_on(server: Any) -> None:
    """Prompts differ, so the stop string ends the first one only."""
    body = {"prompt": ["a", "K"], "stop": "de", "max_tokens": 9}
    first, second = server.post("/v1/completions", body).json()["choices"]
    assert (first["text"], first["finish_reason"], first["stop_reason"]) == ("bc", "stop", "de")
    assert (second["text"], second["finish_reason"]) == ("LMNOPQRST", "length")


def test_a_stop_string_can_be_kept_and_a_stop_token_is_named(server: Any) -> None:
    body = {"prompt": "a", "stop": "de", "include_stop_str_in_output": True}
    assert server.post("/v1/completions", body).json()["choices"][0]["text"] == "bcde"
    body = {"prompt": "a", "stop_token_ids": [100]}
    choice = server.post("/v1/completions", body).json()["choices"][0]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == ("bc", "stop", 100)


def test_usage_of_a_stream_comes_last_when_asked_for(client: openai.OpenAI) -> None:
    *chunks, last = client.completions.create(
        model="counting/model",
        prompt="a",
        max_tokens=3,
        stream=True,
        stream_options={"include_usage": True},
    )
    assert last.choices == []
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (1, 3)
    assert all(chunk.usage is None for chunk in chunks)


@pytest.mark.parametrize("stream", [False, True])
def test_a_model_without_tokenizer_speaks_token_ids(start: Any, stream: bool) -> None:
    server = start(with_tokenizer=False)
    body = {"prompt": [7], "max_tokens": 3, "stream": stream}
    answer = server.post("/v1/completions", body)
    assert answer.status_code == 200
    if stream:
        events = [json.loads(line[6:]) for line in answer.text.split("\n\n")[:-2]]
        choices = [event["choices"][0] for event in events]
    else:
        choices = answer.json()["choices"]
    assert [id for choice in choices for id in choice["token_ids"]] == [8, 9, 10]
    assert choices[0]["prompt_token_ids"] == [7]
    assert "".join(choice["text"] for choice in choices) == ""
    refused = server.post("/v1/completions", {"prompt": "text"})
    assert refused.status_code == 400
    assert "no tokenizer" in refused.json()["error"]["message"]


def test_a_long_prompt_can_be_cut_from_the_left(server: Any) -> None:
    server.post("/v1/completions", {"prompt": "abcdef", "truncate_prompt_tokens": 2})
    assert server.engine.submissions[-1].prompt == (101, 102)
    body = {"prompt": "a" * 4000, "truncate_prompt_tokens": -1, "max_tokens": 1000}
    server.post("/v1/completions", body)
    assert len(server.engine.submissions[-1].prompt) == 2048 - 1000


def test_tokenize_and_detokenize_are_inverse_and_agree_with_usage(server: Any) -> None:
    body = {"prompt": "häß", "return_token_strs": True}
    answer = server.post("/tokenize", body).json()
    assert answer["count"] == len(answer["tokens"]) == len(answer["token_strs"]) == 5
    assert answer["max_model_len"] == 2048
    assert server.post("/detokenize", {"tokens": answer["tokens"]}).json() == {"prompt": "häß"}
    messages = [{"role": "user", "content": "Hello"}]
    count = server.post("/tokenize", {"messages": messages}).json()["count"]
    chat = server.post("/v1/chat/completions", {"messages": messages, "max_tokens": 1}).json()
    assert chat["usage"]["prompt_tokens"] == count


def test_models_are_listed_under_every_served_name(start: Any) -> None:
    server = start(served_model_names=("team/best", "other"))
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        cards = list(client.models.list())
        assert [card.id for card in cards] == ["team/best", "other"]
        card = client.models.retrieve("team/best")  # sent as team%2Fbest
        assert (card.id, card.root, card.max_model_len) == ("team/best", "counting/model", 2048)
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("counting/model")
        answer = client.completions.create(model="other", prompt="a")
        assert answer.model == "other"
