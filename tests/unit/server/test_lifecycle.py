"""Clients that leave, engines that fail or die, servers that are full or shut down."""

import asyncio
import json
import threading
import time
from typing import Any

import httpx
import openai
import pytest

from engine.server.serve import Tokenizer, _import_renderer

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
USER = [{"role": "user", "content": "Hello"}]
RUNNING = "vllm:num_requests_running"


@pytest.mark.parametrize("n", [1, 3])
def test_a_client_that_leaves_a_stream_frees_the_engine(server: Any, n: int) -> None:
    server.engine.pause_s = 0.005
    body = {"messages": USER, "max_tokens": 1000, "stream": True, "n": n, "ignore_eos": True}
    with server.http.stream("POST", CHAT, json=body) as answer:
        lines = answer.iter_lines()
        next(lines)
        assert server.total(RUNNING) == n
    assert server.settled(RUNNING)
    assert server.engine.num_aborted == 1


@pytest.mark.parametrize("prompt", ["a", ["a", "b", "c"]])
def test_a_client_that_leaves_a_plain_request_frees_the_engine(server: Any, prompt: Any) -> None:
    server.engine.pause_s = 0.005
    body = {"prompt": prompt, "max_tokens": 1000, "ignore_eos": True}
    aborted = server.total("vllm:request_success_total", finished_reason="abort")
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(server.url + TEXT, json=body, timeout=0.3)
    assert server.settled(RUNNING)
    now = server.total("vllm:request_success_total", finished_reason="abort")
    assert now - aborted == len(prompt)


def test_a_client_that_closes_the_sdk_stream_frees_the_engine(
    server: Any, client: openai.OpenAI
) -> None:
    server.engine.pause_s = 0.005
    stream = client.completions.create(
        model="counting/model",
        prompt="a",
        max_tokens=1000,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    next(stream)
    stream.close()
    assert server.settled(RUNNING)


def test_a_failing_step_is_an_error_before_and_within_a_stream(
    server: Any, client: openai.OpenAI
) -> None:
    server.engine.fail_after = 2
    answer = server.post(CHAT, {"messages": USER, "max_tokens": 9})
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "InternalServerError"
    stream = client.chat.completions.create(
        model="counting/model", messages=USER, max_tokens=9, stream=True
    )
    with pytest.raises(openai.APIError, match="a step failed"):
        list(stream)
    answer = server.post(CHAT, {"messages": USER, "max_tokens": 9, "stream": True})
    assert "[DONE]" not in answer.text
    assert server.http.get("/health").status_code == 200


def test_the_death_of_the_engine_is_told_to_everyone_at_once(start: Any) -> None:
    server = start()
    server.engine.pause_s = 0.01
    answers: dict[str, httpx.Response] = {}

    def ask(name: str, stream: bool) -> None:
        body = {"prompt": "a", "max_tokens": 1900, "ignore_eos": True, "stream": stream}
        answers[name] = httpx.post(server.url + TEXT, json=body, timeout=20)

    threads = [
        threading.Thread(target=ask, args=("plain", False)),
        threading.Thread(target=ask, args=("streamed", True)),
    ]
    for thread in threads:
        thread.start()
    while len(server.engine.submissions) < 2:
        time.sleep(0.01)
    time.sleep(0.1)
    began = time.monotonic()
    server.call(server.engine.die)
    for thread in threads:
        thread.join(10)
    assert time.monotonic() - began < 3
    assert answers["plain"].status_code == 500
    assert answers["plain"].json()["error"]["type"] == "InternalServerError"
    last = [line for line in answers["streamed"].text.split("\n\n") if line][-1]
    assert "error" in json.loads(last.removeprefix("data: "))
    for method, path in (("GET", "/health"), ("GET", "/ping"), ("POST", TEXT)):
        answer = server.http.request(method, path, json={"prompt": "a"})
        assert answer.status_code == 503
        assert "ended" in answer.json()["error"]["message"]
    assert server.http.get("/metrics").status_code == 200


def test_a_draining_server_finishes_what_runs_and_refuses_what_comes(start: Any) -> None:
    server = start()
    server.engine.pause_s = 0.01
    body = {"prompt": "a", "max_tokens": 60, "stream": True, "ignore_eos": True}
    with server.http.stream("POST", TEXT, json=body) as answer:
        lines = answer.iter_lines()
        next(lines)
        server.call(lambda: setattr(server.service, "draining", True))
        refused = httpx.post(server.url + TEXT, json={"prompt": "a"})
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) > 0
        assert httpx.get(server.url + "/health").status_code == 503
        rest = list(lines)
    assert rest[-2] == "data: [DONE]" or rest[-1] == "data: [DONE]"


def test_an_engine_that_takes_no_more_is_a_503_too(start: Any) -> None:
    """Between the server's own check and the engine's a drain may begin."""
    server = start()
    server.engine.draining = True
    for stream in (False, True):
        answer = server.post(TEXT, {"prompt": "a", "stream": stream})
        assert answer.status_code == 503
    assert server.service.num_waiting == 0


def test_a_full_queue_is_a_429_until_first_tokens_come(start: Any) -> None:
    server = start(max_queue=2)
    server.engine.pause_s = 0.5
    threads = [
        threading.Thread(
            target=lambda: httpx.post(
                server.url + TEXT, json={"prompt": "a", "max_tokens": 1}, timeout=20
            )
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    while server.service.num_waiting < 2:
        time.sleep(0.005)
    refused = server.post(TEXT, {"prompt": "a"})
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) > 0
    for thread in threads:
        thread.join(10)
    server.engine.pause_s = 0.0
    assert server.post(TEXT, {"prompt": "a"}).status_code == 200


def test_many_streams_at_once_all_say_the_right_thing(server: Any) -> None:
    texts: list[str] = []

    def ask() -> None:
        body = {"prompt": "a", "max_tokens": 8, "stream": True}
        with httpx.Client(base_url=server.url, timeout=30, verify=False) as http:
            for _ in range(5):
                text = http.post(TEXT, json=body).text
                events = [json.loads(line[6:]) for line in text.split("\n\n")[:-2]]
                texts.append("".join(event["choices"][0]["text"] for event in events))

    threads = [threading.Thread(target=ask) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert texts == ["bcdefghi"] * 50


async def test_a_renderer_that_cannot_be_imported_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> None:
        raise ImportError("half installed")

    monkeypatch.setattr(Tokenizer, "import_renderer", broken)
    await _import_renderer(asyncio.create_task(asyncio.to_thread(lambda: asyncio)))
    assert "what renders conversations cannot be imported" in caplog.text
    assert "half installed" in caplog.text
