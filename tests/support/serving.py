"""Starts servers as a user does, and looks at them from outside."""

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

#: Far more than loading a small model takes; reached only when something hangs.
LIMIT_S = 120.0


class Serving:
    """A server process. `output` is what it has printed so far."""

    def __init__(self, command: Sequence[str]) -> None:
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.lines: list[str] = []
        self.url = ""
        self._ready = threading.Event()
        self._reading = threading.Thread(target=self._read)
        self._reading.start()

    @property
    def output(self) -> str:
        return "".join(self.lines)

    def wait_ready(self) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not self._ready.wait(0.05):
            assert self.process.poll() is None, f"the server ended:\n{self.output}"
            assert time.monotonic() < deadline, f"the server is not ready:\n{self.output}"
        self.http = httpx.Client(base_url=self.url, timeout=60, verify=False)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self, timeout_s: float = LIMIT_S) -> int:
        """The exit code."""
        code = self.process.wait(timeout_s)
        self._reading.join(10)
        return code

    def engine_process(self) -> psutil.Process:
        (child,) = psutil.Process(self.process.pid).children()
        return child

    def metric(self, name: str) -> float:
        """The sum of all samples of this exact name."""
        return sum(
            float(line.rpartition(" ")[2])
            for line in self.http.get("/metrics").text.splitlines()
            if line.startswith((name + " ", name + "{"))
        )

    def settles(self, name: str, value: float = 0.0) -> bool:
        """Whether the metric comes to this value within ten seconds."""
        deadline = time.monotonic() + 10
        while self.metric(name) != value:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reading.join(10)
        assert self.process.stdout is not None
        self.process.stdout.close()
        if self.url:
            self.http.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if found := re.search(r"^engine serves .* on (http://\S+)", line):
                self.url = found[1]
            elif self.url:  # what to try stands on the line after the address
                self._ready.set()


@contextmanager
def serving(*arguments: str) -> Iterator[Serving]:
    """`engine serve` with these arguments, on a free port, once it is ready."""
    command = [str(Path(sys.executable).with_name("engine")), "serve", *arguments, "--port", "0"]
    with _running(command) as server:
        server.wait_ready()
        yield server


@contextmanager
def counting_server(
    path: Path, *, wait: bool = True, settings: dict[str, Any] | None = None, **options: Any
) -> Iterator[Serving]:
    """`counting_server.py`, with a tokenizer in `path`, on a free port."""
    script = Path(__file__).with_name("counting_server.py")
    command = [
        sys.executable,
        str(script),
        json.dumps({"path": str(path)} | (settings or {})),
        json.dumps({"port": 0} | options),
    ]
    with _running(command) as server:
        if wait:
            server.wait_ready()
        yield server


@contextmanager
def _running(command: Sequence[str]) -> Iterator[Serving]:
    server = Serving(command)
    try:
        yield server
    finally:
        server.stop()
