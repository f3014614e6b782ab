"""A device that fails under a server: clients hear of it, and who comes later is served."""

import subprocess

import httpx
import pytest
from serving import Serving, serving

pytest.importorskip("engine_sim", reason="plugins/sim is not installed")

ASK = {"prompt": "2 + 3 =", "max_tokens": 6, "temperature": 0, "ignore_eos": True}
SMALL = ("--max-requests", "4", "--max-batch-tokens", "64", "--max-model-len", "128")


def ask(server: Serving) -> httpx.Response:
    return server.http.post("/v1/completions", json=ASK)


@pytest.mark.parametrize("fault", ["raise@3", "oom@3", "garbage@3"])
@pytest.mark.parametrize("shapes", ["", ",static"], ids=["any", "static"])
def test_a_step_that_fails_is_told_and_the_next_request_is_right(fault: str, shapes: str) -> None:
    with serving("embedded", "--device", f"sim:{fault}{shapes}", *SMALL) as server:
        failed = ask(server)
        assert failed.status_code == 500
        assert failed.json()["error"]["message"]
        first, second = ask(server), ask(server)
        assert first.status_code == second.status_code == 200
        assert first.json()["choices"][0]["text"] == second.json()["choices"][0]["text"]
        assert server.settles("vllm:kv_cache_usage_perc")
        assert server.settles("vllm:num_requests_running")


@pytest.mark.parametrize("overlap", ["--overlap", "--no-overlap"])
@pytest.mark.parametrize("fault", ["hang@3", "lost@3"])
def test_a_device_that_is_gone_ends_the_server_with_an_error_and_never_a_hang(
    fault: str, overlap: str
) -> None:
    options = (*SMALL, overlap, "--step-timeout", "2", "--linger", "1")
    with serving("embedded", "--device", f"sim:{fault}", *options) as server:
        for _ in range(4):  # a lost device is given up after three steps
            try:
                answer = ask(server)
            except httpx.TransportError:
                break
            assert answer.status_code in (500, 503), answer.text
            assert answer.json()["error"]["message"]
        try:
            code = server.wait(30)
        except subprocess.TimeoutExpired:
            pytest.fail(f"the server hangs:\n{server.output}")
        assert code != 0
        assert "did not end within 2" in server.output or "steps in a row failed" in server.output
