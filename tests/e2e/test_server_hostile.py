"""A thousand hostile requests to the whole server, broken connections among them."""

import random
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from byte_tokenizer import write_byte_tokenizer
from hostile import hostile
from serving import Serving, counting_server, serving

NUM_REQUESTS = 1000
NUM_CLIENTS = 4


@pytest.fixture(params=["counting", "embedded"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Serving]:
    counting = request.param == "counting"
    made = counting_server(write_byte_tokenizer(tmp_path)) if counting else serving("--device=cpu")
    with made as server:
        yield server


def test_a_server_survives_a_thousand_hostile_requests(server: Serving) -> None:
    ask = {"prompt": "a", "max_tokens": 3, "temperature": 0}
    before = server.http.post("/v1/completions", json=ask).json()
    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        statuses = set().union(*pool.map(lambda seed: _attack(server, seed), range(NUM_CLIENTS)))
    assert {200, 400} <= statuses <= {200, 400, 404}
    assert server.http.get("/health").status_code == 200
    assert server.settles("vllm:num_requests_running")
    assert server.settles("vllm:num_requests_waiting")
    assert server.settles("vllm:kv_cache_usage_perc")
    after = server.http.post("/v1/completions", json=ask).json()
    assert after["choices"] == before["choices"]
    assert "Traceback" not in server.output


def _attack(server: Serving, seed: int) -> set[int]:
    choose = random.Random(seed)
    statuses = set()
    with httpx.Client(base_url=server.url, timeout=60, verify=False) as http:
        for _ in range(NUM_REQUESTS // NUM_CLIENTS):
            path, body = hostile(choose)
            if choose.random() < 0.2:
                _break_off(server, path, body, choose)
                continue
            head = {"content-type": "application/json"}
            answer = http.post(path, content=body, headers=head)
            statuses.add(answer.status_code)
            if answer.status_code != 200:
                assert set(answer.json()["error"]) == {"message", "type", "param", "code"}, body
    return statuses


def _break_off(server: Serving, path: str, body: bytes, choose: random.Random) -> None:
    """Send a part of a request, perhaps with noise in it, and leave."""
    address = urlsplit(server.url)
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    whole = head.encode() + body
    at = choose.randint(1, len(whole))
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        connection.sendall(whole[:at] + choose.randbytes(choose.choice((0, 0, 20))))
