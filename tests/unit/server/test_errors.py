"""What a client is told when something is wrong: one shape, the right status, nothing leaked."""

import socket
from typing import Any

import openai
import pytest

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
USER = [{"role": "user", "content": "Hello"}]
LOOK = {"type": "function", "function": {"name": "look"}}


def check(answer: Any, status: int, parameter: str | None = None) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert "Traceback" not in error["message"]
    assert len(answer.content) < 1500
    if parameter is not None:
        assert error["param"] == parameter, error
    return error


@pytest.mark.parametrize(
    ("path", "fields", "parameter"),
    [
        (CHAT, {"messages": None}, "messages"),
        (CHAT, {"messages": []}, "messages"),
        (CHAT, {"messages": "Hello"}, "messages"),
        (CHAT, {"messages": ["Hello"]}, "messages[0]"),
        (CHAT, {"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        (CHAT, {"messages": [{"role": "user"}]}, "messages[0].content"),
        (CHAT, {"messages": [{"role": "king", "content": "I"}]}, "messages[0].role"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "smell"}]}]}, None),
        (
            CHAT,
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content[0]",
        ),
        (CHAT, {"n": 0}, "n"),
        (CHAT, {"n": 1.5}, "n"),
        (CHAT, {"n": "2"}, "n"),
        (CHAT, {"n": 10**30}, "n"),
        (CHAT, {"temperature": -0.1}, "temperature"),
        (CHAT, {"temperature": 2.1}, "temperature"),
        (CHAT, {"temperature": True}, "temperature"),
        (CHAT, {"top_p": 0}, "top_p"),
        (CHAT, {"top_k": -2}, "top_k"),
        (CHAT, {"min_p": 1.1}, "min_p"),
        (CHAT, {"repetition_penalty": 0}, "repetition_penalty"),
        (CHAT, {"presence_penalty": 2.5}, "presence_penalty"),
        (CHAT, {"seed": 2**63}, "seed"),
        (CHAT, {"logit_bias": {"5": 101}}, "logit_bias"),
        (CHAT, {"logit_bias": {"many": 1}}, "logit_bias"),
        (CHAT, {"logit_bias": {"99999": 1}}, "logit_bias"),
        (CHAT, {"allowed_token_ids": [-1]}, "allowed_token_ids"),
        (CHAT, {"allowed_token_ids": []}, "allowed_token_ids"),
        (CHAT, {"stop": ""}, "stop"),
        (CHAT, {"stop": ["a"] * 65}, "stop"),
        (CHAT, {"stop": 5}, "stop"),
        (CHAT, {"max_tokens": 0}, "max_tokens"),
        (CHAT, {"max_completion_tokens": -1}, "max_tokens"),
        (CHAT, {"min_tokens": 5, "max_tokens": 4}, "min_tokens"),
        (CHAT, {"top_logprobs": 3}, "top_logprobs"),
        (CHAT, {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        (CHAT, {"logprobs": 3}, "logprobs"),
        (CHAT, {"stream_options": {"include_usage": True}}, "stream_options"),
        (CHAT, {"stream": True, "prompt_logprobs": 1}, "prompt_logprobs"),
        (CHAT, {"response_format": {"type": "json_object"}}, "response_format"),
        (CHAT, {"structured_outputs": {"regex": "a"}}, "structured_outputs"),
        (CHAT, {"guided_choice": ["a", "b"]}, "guided_choice"),
        (CHAT, {"use_beam_search": True}, "use_beam_search"),
        (CHAT, {"modalities": ["audio"]}, "modalities"),
        (CHAT, {"chat_template": "{{ 7 * 7 }}"}, "chat_template"),
        (CHAT, {"chat_template_kwargs": {"chat_template": "x"}}, "chat_template_kwargs"),
        (CHAT, {"tools": []}, "tools"),
        (CHAT, {"tools": [{"type": "function", "function": {}}]}, "tools[0].function"),
        (CHAT, {"tool_choice": "auto"}, "tool_choice"),
        (CHAT, {"tools": [LOOK], "tool_choice": "required"}, "tool_choice"),
        (CHAT, {"tools": [LOOK], "tool_choice": LOOK}, "tool_choice"),
        (CHAT, {"tools": [LOOK], "tool_choice": "perhaps"}, "tool_choice"),
        (CHAT, {"add_generation_prompt": True, "continue_final_message": True}, None),
        (CHAT, {"request_id": "a\nb"}, "request_id"),
        (TEXT, {"prompt": None}, "prompt"),
        (TEXT, {"prompt": ""}, "prompt"),
        (TEXT, {"prompt": []}, "prompt"),
        (TEXT, {"prompt": [[]]}, "prompt"),
        (TEXT, {"prompt": ["a", 5]}, "prompt[1]"),
        (TEXT, {"prompt": [5, True]}, "prompt[1]"),
        (TEXT, {"prompt": [1.5]}, "prompt"),
        (TEXT, {"prompt": {"text": "a"}}, "prompt"),
        (TEXT, {"prompt": [300]}, "prompt"),
        (TEXT, {"prompt": [-1]}, "prompt"),
        (TEXT, {"prompt": [10**30]}, "prompt"),
        (TEXT, {"prompt": ["a"] * 2049}, "prompt"),
        (TEXT, {"prompt": ["a"] * 200, "n": 100}, "n"),
        (TEXT, {"suffix": "end"}, "suffix"),
        (TEXT, {"best_of": 3}, "best_of"),
        (TEXT, {"logprobs": 21}, "logprobs"),
        (TEXT, {"max_tokens": 0}, "max_tokens"),
        (TEXT, {"echo": True, "logprobs": 1, "n": 2, "stream": True}, "n"),
        (TEXT, {"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": USER}, "prompt"),
        ("/detokenize", {"tokens": [300]}, "tokens"),
        ("/detokenize", {"tokens": "a"}, "tokens"),
    ],
)
def test_what_is_not_valid_is_a_400_that_names_the_field(
    server: Any, path: str, fields: dict[str, Any], parameter: str | None
) -> None:
    whole: dict[str, Any] = {CHAT: {"messages": USER}, TEXT: {"prompt": "a"}}.get(path, {})
    error = check(server.post(path, whole | fields), 400, parameter)
    assert error["type"] == "BadRequestError"
    if "stream" not in fields and "stream_options" not in fields and path in (CHAT, TEXT):
        check(server.post(path, whole | fields | {"stream": True}), 400)
    assert not server.engine.submissions


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"   ",
        b"{",
        b"[]",
        b'"text"',
        b"\xff\xfe",
        b'{"prompt": "\xff"}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "a", "temperature": NaN}',
        b'{"prompt": "a", "temperature": 1e400}',
        b'{"prompt": "a", "temperature": Infinity}',
        b'{"prompt": ' + b"[" * 100_000,
        b'{"unknown": ' + b"[" * 100_000,
        b"{} {}",
    ],
)
def test_what_is_no_json_object_is_a_400(server: Any, body: bytes) -> None:
    check(server.http.post(TEXT, content=body, headers={"content-type": "application/json"}), 400)


def test_a_prompt_over_the_context_is_refused_in_the_words_clients_look_for(server: Any) -> None:
    for body in ({"prompt": "a" * 3000}, {"prompt": "a", "max_tokens": 2048}):
        error = check(server.post(TEXT, body), 400)
        assert "This model's maximum context length is 2048 tokens" in error["message"]
        assert error["code"] == "context_length_exceeded"


@pytest.mark.parametrize("stream", [False, True])
def test_what_the_engine_itself_refuses_is_a_400_also_for_a_stream(
    server: Any, stream: bool
) -> None:
    body = {"prompt": [[65], [65] * 1950], "stream": stream, "max_tokens": 50}
    check(server.post(TEXT, body), 400, "prompt")
    assert server.settled("vllm:num_requests_running")


def test_large_input_is_not_sent_back(server: Any) -> None:
    check(server.post(TEXT, {"prompt": "a", "model": "x" * 100_000}), 404)
    check(server.post(TEXT, {"prompt": {"y" * 1000: "x" * 100_000}}), 400)
    check(server.post(CHAT, {"messages": [{"role": "x" * 100_000, "content": ""}]}), 400)
    check(server.http.get("/" + "x" * 10_000), 404)


def test_unknown_models_routes_and_methods_have_their_status(server: Any) -> None:
    check(server.post(TEXT, {"prompt": "a", "model": "other"}), 404, "model")
    check(server.http.get("/v1/models/other"), 404)
    check(server.http.get("/v2/none"), 404)
    check(server.http.get(TEXT), 405)
    check(server.http.delete("/v1/models"), 405)
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(openai.NotFoundError, match="does not exist"):
            client.completions.create(model="other", prompt="a")
        with pytest.raises(openai.BadRequestError):
            client.completions.create(model="counting/model", prompt=[-1])


def test_other_kinds_of_content_are_refused(server: Any) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; x=y"):
        check(server.http.post(TEXT, content=b"{}", headers={"content-type": kind}), 415)
    packed = {"content-type": "application/json", "content-encoding": "gzip"}
    check(server.http.post(TEXT, content=b"{}", headers=packed), 415)


def test_a_body_is_bounded_declared_or_not(start: Any) -> None:
    server = start(max_body_bytes=1000)
    head = {"content-type": "application/json"}
    check(server.http.post(TEXT, content=b" " * 1001, headers=head), 413)
    check(server.http.post(TEXT, content=iter([b" " * 600] * 2), headers=head), 413)
    assert server.post(TEXT, {"prompt": "a"}).status_code == 200


def test_a_body_that_does_not_come_is_not_waited_for(start: Any) -> None:
    server = start(body_timeout_s=0.2)
    answer = _raw(
        server, b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{"
    )
    assert answer.startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x00\x01\x02\x03\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\n\r\n",
        b"GET  HTTP/1.1\r\n\r\n",
    ],
)
def test_broken_http_gets_a_400_in_the_same_shape(server: Any, request_bytes: bytes) -> None:
    answer = _raw(server, request_bytes)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b'{"error":{"message":' in answer
    assert server.http.get("/health").status_code == 200


@pytest.mark.parametrize(
    "head", [b"GET /" + b"x" * 200_000, b"GET / HTTP/1.1\r\nA: " + b"x" * 200_000]
)
def test_a_head_without_end_is_refused(server: Any, head: bytes) -> None:
    assert _raw(server, head).startswith((b"HTTP/1.1 431 ", b"HTTP/1.1 400 "))


@pytest.mark.parametrize("begun", [b"", b"GET /health HTTP/1.1\r\nHost:"])
def test_a_head_that_does_not_come_is_not_waited_for(
    server: Any, begun: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.server.protocol.HEAD_TIMEOUT_S", 0.2)
    assert _raw(server, begun) == b""


def test_a_key_opens_v1_and_only_v1_asks_for_it(start: Any) -> None:
    server = start(api_keys=("first", "second", "schlüssel"))
    for headers in ({}, {"authorization": "Bearer third"}, {"authorization": "Basic first"}):
        check(server.post(TEXT, {"prompt": "a"}, headers=headers), 401)
        check(server.http.get("/v1/none", headers=headers), 401)
    for key in ("first", "second", "schlüssel"):
        headers = {"authorization": f"Bearer {key}".encode()}
        assert server.post(TEXT, {"prompt": "a"}, headers=headers).status_code == 200
    assert server.http.get("/health").status_code == 200
    assert server.http.options("/v1/models").status_code == 405  # no key, and no such method
    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="third", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.models.list()


def test_pages_of_allowed_origins_may_call_also_when_refused(start: Any) -> None:
    server = start(allowed_origins=("https://page.example",), api_keys=("key",))
    headers = {"origin": "https://page.example", "access-control-request-method": "POST"}
    preflight = server.http.options(TEXT, headers=headers)
    assert preflight.status_code == 200
    refused = server.post(TEXT, {"prompt": "a"}, headers={"origin": "https://page.example"})
    for answer in (preflight, refused):
        assert answer.headers["access-control-allow-origin"] == "https://page.example"
    other = server.http.get("/health", headers={"origin": "https://other.example"})
    assert "access-control-allow-origin" not in other.headers


def test_a_mistake_of_the_server_itself_tells_nothing(start: Any) -> None:
    server = start()

    def broken() -> None:
        raise RuntimeError("secret")

    server.service.check_open = broken
    error = check(server.post(TEXT, {"prompt": "a"}), 500)
    assert "secret" not in error["message"]


def test_the_api_describes_its_bodies(server: Any) -> None:
    document = server.http.get("/openapi.json").json()
    schema = document["paths"][CHAT]["post"]["requestBody"]["content"]["application/json"]["schema"]
    name = schema["$ref"].rpartition("/")[2]
    assert "temperature" in document["components"]["schemas"][name]["properties"]


def _raw(server: Any, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(request)
        connection.settimeout(5)
        try:
            return connection.recv(65536)  # empty: the server has closed the connection
        except ConnectionResetError:
            return b""
