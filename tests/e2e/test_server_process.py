"""The server as a process: start, signals, exit codes, the engine's death. No torch."""

import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from byte_tokenizer import write_byte_tokenizer
from serving import Serving, counting_server

TEXT = "/v1/completions"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_byte_tokenizer(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without a tokenizer: it starts faster, and takes and gives token ids."""
    return tmp_path_factory.mktemp("bare")


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[Serving]:
    with counting_server(model) as server:
        yield server


def ask(server: Serving, answers: list[Any], **fields: Any) -> threading.Thread:
    """A request in a thread of its own, of which `answers` gets the answer."""
    body = {"prompt": [97], "ignore_eos": True} | fields

    def run() -> None:
        try:
            answers.append(httpx.post(server.url + TEXT, json=body, timeout=60, verify=False))
        except httpx.HTTPError as error:
            answers.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_the_ready_lines_name_the_address_and_something_to_try(server: Serving) -> None:
    (ready,) = [line for line in server.lines if line.startswith("engine serves counting on ")]
    command = server.lines[server.lines.index(ready) + 1]
    assert command.startswith(f"  curl {server.url}/v1/chat/completions ")
    shown = subprocess.run(["sh", "-c", command.strip() + " -s"], capture_output=True, check=False)
    if shown.returncode != 127:  # no curl here
        assert b'"chat.completion"' in shown.stdout


def test_the_whole_way_through_both_processes_gives_the_right_text(server: Serving) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        answer = client.completions.create(model="counting", prompt="abc", max_tokens=5, n=2)
        assert [choice.text for choice in answer.choices] == ["defgh"] * 2
        chunks = list(
            client.completions.create(
                model="counting", prompt=["a", "A"], max_tokens=20, stop="fg", stream=True
            )
        )
    texts = ["", ""]
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == ["bcde", "BCDEFGHIJKLMNOPQRSTU"]
    assert server.settles("vllm:num_requests_running")


def test_clients_that_leave_free_every_block(bare: Path) -> None:
    body = {"prompt": [97] * 100, "max_tokens": 400, "ignore_eos": True, "n": 2}
    with counting_server(bare, settings={"step_s": 0.01}) as server:
        with server.http.stream("POST", TEXT, json=body | {"stream": True}) as answer:
            lines = answer.iter_lines()
            next(lines)
            assert server.metric("vllm:num_requests_running") == 2
            assert server.metric("vllm:kv_cache_usage_perc") > 0
        assert server.settles("vllm:num_requests_running")
        assert server.settles("vllm:kv_cache_usage_perc")
        with pytest.raises(httpx.ReadTimeout):
            server.http.post(TEXT, json=body, timeout=0.3)
        assert server.settles("vllm:num_requests_running")
        assert server.settles("vllm:kv_cache_usage_perc")


def test_sigterm_lets_streams_finish_and_refuses_new_requests(bare: Path) -> None:
    with counting_server(bare, settings={"step_s": 0.01}) as server:
        answers: list[Any] = []
        threads = [ask(server, answers, max_tokens=400, stream=stream) for stream in (True, False)]
        while server.metric("vllm:num_requests_running") < 2:
            time.sleep(0.01)
        server.signal(signal.SIGTERM)
        while server.http.get("/health").status_code == 200:
            time.sleep(0.01)
        refused = server.http.post(TEXT, json={"prompt": [97]})
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        for thread in threads:
            thread.join(30)
        assert server.wait(20) == 0
        assert [answer.status_code for answer in answers] == [200, 200]
        assert any("[DONE]" in answer.text for answer in answers)


def test_what_outlives_the_shutdown_timeout_is_told_so(bare: Path) -> None:
    with counting_server(bare, settings={"step_s": 0.03}, shutdown_timeout_s=0.3) as server:
        answers: list[Any] = []
        threads = [ask(server, answers, max_tokens=500, stream=stream) for stream in (True, False)]
        while server.metric("vllm:num_requests_running") < 2:
            time.sleep(0.01)
        server.signal(signal.SIGINT)
        assert server.wait(20) == 0
        for thread in threads:
            thread.join(30)
        streamed, plain = sorted(answers, key=lambda answer: answer.status_code)
        assert plain.status_code == 503
        assert '"error"' in streamed.text.split("\n\n")[-2]


def test_a_second_signal_ends_it_at_once(bare: Path) -> None:
    with counting_server(bare, settings={"step_s": 0.03}) as server:
        answers: list[Any] = []
        thread = ask(server, answers, max_tokens=500)
        while server.metric("vllm:num_requests_running") < 1:
            time.sleep(0.01)
        engine = server.engine_process()
        server.signal(signal.SIGTERM)
        time.sleep(0.2)
        began = time.monotonic()
        server.signal(signal.SIGTERM)
        assert server.wait(20) == 128 + signal.SIGTERM
        assert time.monotonic() - began < 4
        thread.join(10)
        assert not engine.is_running()


def test_a_killed_engine_is_told_to_its_clients_and_by_the_exit_code(bare: Path) -> None:
    with counting_server(bare, settings={"step_s": 0.03}, linger_s=2.0) as server:
        answers: list[Any] = []
        threads = [ask(server, answers, max_tokens=500, stream=stream) for stream in (True, False)]
        while server.metric("vllm:num_requests_running") < 2:
            time.sleep(0.01)
        server.engine_process().kill()
        for thread in threads:
            thread.join(10)
        assert server.http.get("/health").status_code == 503
        assert server.wait(20) == 1
        streamed, plain = sorted(answers, key=lambda answer: answer.status_code)
        assert plain.status_code == 500
        assert '"error"' in streamed.text.split("\n\n")[-2]


def test_a_signal_while_loading_ends_it(bare: Path) -> None:
    with counting_server(bare, wait=False, settings={"load_s": 60}) as server:
        while not _children(server):
            time.sleep(0.05)
        server.signal(signal.SIGINT)
        assert server.wait(20) == 128 + signal.SIGINT


def test_an_address_that_is_taken_is_an_error_before_anything_is_loaded(bare: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        settings = {"load_s": 60}
        with counting_server(bare, wait=False, settings=settings, port=port) as server:
            assert server.wait(30) != 0
            assert f"cannot listen on 127.0.0.1:{port}" in server.output


def test_a_unix_socket_serves_and_is_gone_afterwards(bare: Path, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with counting_server(bare, wait=False, uds=str(path)) as server:
        while not any("curl" in line for line in server.lines):
            assert server.process.poll() is None, server.output
            time.sleep(0.05)
        transport = httpx.HTTPTransport(uds=str(path))
        with httpx.Client(transport=transport, base_url="http://localhost") as http:
            assert http.post(TEXT, json={"prompt": [97]}).status_code == 200
        server.signal(signal.SIGTERM)
        assert server.wait(20) == 0
        assert not path.exists()


def test_the_server_process_needs_no_torch(server: Serving) -> None:
    libraries = {mapped.path for mapped in psutil.Process(server.process.pid).memory_maps()}
    assert not [path for path in libraries if "torch" in path]


def _children(server: Serving) -> list[psutil.Process]:
    return psutil.Process(server.process.pid).children()
