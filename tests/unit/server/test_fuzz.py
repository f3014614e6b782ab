"""A few hundred hostile requests; afterwards the server is well, and nothing runs any more."""

import random
import socket
from typing import Any

import pytest
from hostile import hostile


@pytest.mark.parametrize("seed", range(3))
def test_no_request_is_a_server_error_and_nothing_is_left_behind(server: Any, seed: int) -> None:
    choose = random.Random(seed)
    statuses = set()
    for _ in range(120):
        path, data = hostile(choose)
        head = {"content-type": "application/json"}
        answer = server.http.post(path, content=data, headers=head)
        statuses.add(answer.status_code)
        assert answer.status_code in (200, 400, 404), (path, data, answer.text)
        if answer.status_code == 200:
            assert b'"error"' not in answer.content[:20]
        else:
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
            assert len(answer.content) < 1500
    assert {200, 400} <= statuses
    assert server.http.get("/health").status_code == 200
    assert server.settled("vllm:num_requests_running")


def test_connections_that_break_off_anywhere_do_no_harm(server: Any) -> None:
    choose = random.Random(0)
    body = b'{"prompt": "a", "max_tokens": 1000, "ignore_eos": true, "stream": true}'
    whole = (
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
    )
    server.engine.pause_s = 0.001
    for _ in range(60):
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
            connection.sendall(whole[: choose.randint(1, len(whole))])
            if choose.random() < 0.3:
                connection.sendall(choose.randbytes(40))
    assert server.http.get("/health").status_code == 200
    assert server.settled("vllm:num_requests_running")
