"""Chat completions, through the official client over a real socket."""

import json
from typing import Any

import openai
import pytest

USER = [{"role": "user", "content": "Hello"}]


def test_an_answer_has_every_field_the_client_reads(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="counting/model", messages=USER, max_completion_tokens=5
    )
    assert answer.id.startswith("chatcmpl-")
    assert answer.object == "chat.completion"
    assert answer.model == "counting/model"
    assert answer.system_fingerprint
    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content == "ABCDE"
    assert choice.message.refusal is None
    assert choice.finish_reason == "length"
    assert choice.logprobs is None
    assert answer.usage.prompt_tokens == 8  # three special tokens and five letters
    assert answer.usage.completion_tokens == 5
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 5
    assert answer.usage.prompt_tokens_details.cached_tokens == 3


def test_a_stream_says_the_same_as_a_whole_answer(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "counting/model", "messages": USER, "max_tokens": 20}
    whole = client.chat.completions.create(**asked)
    chunks = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    assert len({chunk.id for chunk in chunks}) == 1
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[0].choices[0].delta.content == ""
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert text == whole.choices[0].message.content
    reasons = [chunk.choices[0].finish_reason for chunk in chunks[:-1]]
    assert reasons == [None] * (len(reasons) - 1) + ["length"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_a_stream_ends_with_done_and_nothing_after_it(server: Any) -> None:
    body = {"messages": USER, "max_tokens": 3, "stream": True}
    answer = server.post("/v1/chat/completions", body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = answer.text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    assert all(line.startswith("data: {") for line in lines[:-2])


def test_usage_can_come_with_every_chunk(server: Any) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {"messages": USER, "max_tokens": 3, "stream": True, "stream_options": options}
    events = _events(server.post("/v1/chat/completions", body).text)
    counts = [each["usage"]["completion_tokens"] for each in events]
    assert counts == sorted(counts)
    assert counts[-1] == 3


def test_several_choices_each_have_one_role_and_one_finish_reason(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="counting/model", messages=USER, max_tokens=4, n=3, stream=True
    )
    texts, reasons, roles = ["", "", ""], [[], [], []], [0, 0, 0]
    for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            roles[choice.index] += choice.delta.role == "assistant"
            if choice.finish_reason:
                reasons[choice.index].append(choice.finish_reason)
    assert texts == ["ABCD"] * 3
    assert roles == [1, 1, 1]
    assert reasons == [["length"]] * 3


@pytest.mark.parametrize("stream", [False, True])
def test_text_is_cut_right_before_a_stop_string_that_spans_tokens(
    server: Any, client: openai.OpenAI, stream: bool
) -> None:
    asked: dict[str, Any] = {"model": "counting/model", "messages": USER, "stop": ["XX", "DEF"]}
    if stream:
        chunks = list(client.chat.completions.create(**asked, stream=True))
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        reason, stop = chunks[-1].choices[0].finish_reason, chunks[-1].choices[0].stop_reason
    else:
        (choice,) = client.chat.completions.create(**asked).choices
        text, reason, stop = choice.message.content, choice.finish_reason, choice.stop_reason
    assert text == "ABC"
    assert (reason, stop) == ("stop", "DEF")
    assert server.engine.num_aborted == 1  # the engine would have gone on
    assert server.settled("vllm:num_requests_running")


def test_the_end_token_is_no_text_and_no_stop_reason(client: openai.OpenAI) -> None:
    (choice,) = client.chat.completions.create(
        model="counting/model", messages=USER, max_tokens=200
    ).choices
    assert choice.message.content.endswith("xyz")
    assert choice.finish_reason == "stop"
    assert choice.stop_reason is None


def test_logprobs_have_one_entry_a_token(client: openai.OpenAI) -> None:
    (choice,) = client.chat.completions.create(
        model="counting/model", messages=USER, max_tokens=2, logprobs=True, top_logprobs=2
    ).choices
    first, second = choice.logprobs.content
    assert (first.token, first.bytes, first.logprob) == ("A", [65], -0.5)
    assert [(each.token, each.logprob) for each in second.top_logprobs] == [
        ("B", -0.5),
        ("C", -1.5),
    ]
    assert choice.logprobs.refusal is None


def test_logprobs_without_a_number_have_no_alternatives(client: openai.OpenAI) -> None:
    (choice,) = client.chat.completions.create(
        model="counting/model", messages=USER, max_tokens=2, logprobs=True
    ).choices
    assert [entry.top_logprobs for entry in choice.logprobs.content] == [[], []]


def test_streamed_logprobs_are_those_of_the_whole_answer(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "counting/model",
        "messages": USER,
        "max_tokens": 9,
        "logprobs": True,
        "top_logprobs": 1,
    }
    whole = client.chat.completions.create(**asked).choices[0].logprobs.content
    streamed = [
        entry
        for chunk in client.chat.completions.create(**asked, stream=True)
        if chunk.choices[0].logprobs
        for entry in chunk.choices[0].logprobs.content
    ]
    assert streamed == whole


def test_tools_go_into_the_template_and_text_comes_out(server: Any, client: openai.OpenAI) -> None:
    tools = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
    history = [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "1",
                    "type": "function",
                    "function": {"name": "look", "arguments": '{"x": 1, "y": 2}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "1", "content": "seen"},
    ]
    client.chat.completions.create(
        model="counting/model", messages=history, tools=tools, max_tokens=1
    )
    assert _prompt(server) == (
        "<|tool|>look<|user|>a\nb<|end|><|assistant|>look:x,y<|end|><|tool|>seen<|end|><|assistant|>"
    )
    client.chat.completions.create(
        model="counting/model", messages=USER, tools=tools, tool_choice="none", max_tokens=1
    )
    assert "look" not in _prompt(server)


def test_a_developer_speaks_as_the_system(server: Any) -> None:
    server.post(
        "/v1/chat/completions",
        {"messages": [{"role": "developer", "content": "Be brief"}, *USER], "max_tokens": 1},
    )
    assert _prompt(server).startswith("<|system|>Be brief<|end|><|user|>")


def test_template_arguments_and_continuation_reach_the_template(server: Any) -> None:
    body = {
        "messages": [*USER, {"role": "assistant", "content": "So, "}],
        "continue_final_message": True,
        "chat_template_kwargs": {"mood": "!"},
        "max_tokens": 1,
    }
    answer = server.post("/v1/chat/completions", body)
    assert answer.status_code == 200, answer.text
    assert "<|assistant|>So, " in _prompt(server)
    assert not _prompt(server).endswith("<|assistant|>")


def test_a_template_given_at_start_replaces_the_models_own(start: Any) -> None:
    server = start(template="{{ messages[0].content }}?")
    server.post("/v1/chat/completions", {"messages": USER, "max_tokens": 1})
    assert _prompt(server) == "Hello?"


def test_sampling_fields_reach_the_engine(server: Any) -> None:
    fields = {
        "n": 2,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.1,
        "seed": -3,
        "presence_penalty": 1.5,
        "frequency_penalty": -1.5,
        "repetition_penalty": 1.1,
        "logit_bias": {"65": 5, "66": -100},
        "min_tokens": 2,
        "max_tokens": 3,
        "stop_token_ids": [5],
        "ignore_eos": True,
        "allowed_token_ids": [65, 66],
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
    }
    others = {"priority": -2, "cache_salt": "tenant", "top_k": 7, "bad_words": ["no"]}
    answer = server.post("/v1/chat/completions", {"messages": USER, **fields, **others})
    assert answer.status_code == 200, answer.text
    submission = server.engine.submissions[-1]
    expected = fields | {
        "logit_bias": {65: 5.0, 66: -100.0},
        "stop_token_ids": (5,),
        "allowed_token_ids": (65, 66),
    }
    assert {name: getattr(submission.params, name) for name in fields} == expected
    assert submission.params.bad_token_ids
    assert (submission.priority, submission.cache_salt) == (-2, "tenant")


def test_more_alternatives_than_the_vocabulary_has_are_no_limit(server: Any) -> None:
    for top_k in (10_000, 2**31 - 1, -1, 0):
        server.post("/v1/chat/completions", {"messages": USER, "top_k": top_k, "max_tokens": 1})
        assert server.engine.submissions[-1].params.top_k in (0, -1)


def test_null_means_absent_and_unknown_fields_are_ignored(server: Any) -> None:
    body = {
        "messages": USER,
        "max_tokens": 2,
        **dict.fromkeys(("temperature", "stop", "tools", "response_format", "n", "seed", "user")),
        "something_new": {"deep": [1, 2, 3]},
        "metadata": {"a": "b"},
        "store": False,
        "service_tier": "auto",
    }
    answer = server.post("/v1/chat/completions", body)
    assert answer.json()["choices"][0]["message"]["content"] == "AB"


def test_token_ids_prompt_logprobs_and_a_request_id_come_back(server: Any) -> None:
    body = {
        "messages": USER,
        "max_tokens": 2,
        "return_token_ids": True,
        "prompt_logprobs": 1,
        "request_id": "mine-1",
        "return_tokens_as_token_ids": True,
        "logprobs": True,
    }
    answer = server.post("/v1/chat/completions", body).json()
    assert answer["id"] == "chatcmpl-mine-1"
    assert answer["choices"][0]["token_ids"] == [65, 66]
    assert answer["prompt_token_ids"] == list(server.engine.submissions[-1].prompt)
    assert answer["prompt_logprobs"][0] is None
    assert len(answer["prompt_logprobs"]) == answer["usage"]["prompt_tokens"]
    assert answer["choices"][0]["logprobs"]["content"][0]["token"] == "token_id:65"


def test_a_character_of_several_tokens_is_streamed_in_one_piece(server: Any) -> None:
    body = {
        "messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "\u00c2"}],
        "continue_final_message": True,
        "max_tokens": 60,
        "stream": True,
    }  # after the bytes C3 82 the engine counts 83, 84, …: no text at all until a lead byte comes
    events = _events(server.post("/v1/chat/completions", body).text)
    text = "".join(event["choices"][0]["delta"].get("content", "") for event in events)
    body["stream"] = False
    whole = server.post("/v1/chat/completions", body).json()["choices"][0]["message"]["content"]
    assert text == whole


def _events(text: str) -> list[dict[str, Any]]:
    lines = [line[len("data: ") :] for line in text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def _prompt(server: Any) -> str:
    ids = server.engine.submissions[-1].prompt
    return server.service.tokenizer.decode(ids, skip_special_tokens=False)
