"""llama.cpp's own server, as a worker: started here, asked over HTTP, one slot for each request.

The server is the one of llama.cpp's programs that batches continuously; what HTTP costs it on the
same machine, some 0.1 ms a request, is part of its time.
"""

import http.client
import json
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import protocol

START_S = 120


class Server:
    def __init__(self, load: Mapping[str, Any]) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.process = subprocess.Popen([*load["command"], "--port", str(self.port)])
        self.threads = ThreadPoolExecutor(load["requests"])
        self._wait()
        self.facts = {
            "version": load["version"],
            "dtype": load["settings"]["weights"],
            "kv_bytes": protocol.kv_bytes(
                load["model"], load["kv_tokens"], protocol.BYTES["float16"]
            ),
        }

    def generate(self, prompts: Sequence[list[int]], max_tokens: Sequence[int]) -> list[list[int]]:
        return list(self.threads.map(self._complete, prompts, max_tokens))

    def close(self) -> None:
        self.threads.shutdown()
        self.process.terminate()
        self.process.wait()

    def _complete(self, prompt: list[int], count: int) -> list[int]:
        status, body = self._ask(
            "POST",
            "/completion",
            {
                "prompt": prompt,
                "n_predict": count,
                "samplers": ["top_k"],
                "top_k": 1,
                "ignore_eos": True,
                "return_tokens": True,
            },
        )
        if status != 200:
            raise RuntimeError(f"llama-server answered {status}: {body}")
        return [int(token) for token in body["tokens"]]

    def _ask(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        try:
            connection.request(method, path, json.dumps(body), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read() or b"null")
        finally:
            connection.close()

    def _wait(self) -> None:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"llama-server ended with status {self.process.returncode}")
            try:
                if self._ask("GET", "/health")[0] == 200:
                    return
            except OSError:
                pass
            time.sleep(0.02)
        self.process.kill()
        raise RuntimeError(f"llama-server was not ready after {START_S} s")


if __name__ == "__main__":
    protocol.serve(Server)
