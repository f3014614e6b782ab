"""Concurrent HTTP streams against a real `engine serve`, measured at the client."""

import asyncio
import contextlib
import json
import random
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from itertools import pairwise

from workloads import Outcome, Setup

START_S = 300  # a large model may take a while
MAIN = "import sys, engine.cli; sys.exit(engine.cli.main())"


def http(setup: Setup) -> Outcome:
    """All streams are opened at once; each must end by its length."""
    random_ = random.Random(setup.seed)
    prompts = [
        [random_.randrange(setup.vocab_size) for _ in range(random_.randint(32, 512))]
        for _ in range(setup.requests)
    ]
    counts = [random_.randint(16, 256) for _ in range(setup.requests)]
    with _server(setup) as port:
        seconds, times = stream(port, prompts, counts)
    firsts, gaps = waits(times)
    numbers = {
        "seconds": seconds,
        "output_tokens_per_s": sum(counts) / seconds,
        "first_token_p50_s": quantile(firsts, 0.5),
        "first_token_p99_s": quantile(firsts, 0.99),
        "between_events_p50_s": quantile(gaps, 0.5),
        "between_events_p99_s": quantile(gaps, 0.99),
    }
    described = (
        f"{setup.requests} streams at once over HTTP, prompts of 32 to 512 token ids, outputs of"
        " 16 to 256; server, engine and client on one machine"
    )
    return Outcome("http", described, {"engine": numbers}, {})


def stream(
    port: int, prompts: Sequence[list[int]], counts: Sequence[int], at_once: int | None = None
) -> tuple[float, list[list[float]]]:
    """Against any server of the OpenAI API whose model is called "bench".

    `at_once`: so many streams are open; where one ends, the next request is sent. None: all.

    Returns:
        The seconds it took, and of each request when it was sent and when each event came.

    Raises:
        RuntimeError: a stream broke, or is not as long as asked for.
    """
    asyncio.run(_stream(port, prompts[0][:4], 4))  # what is lazy happens here
    began = time.perf_counter()
    times = asyncio.run(_all(port, prompts, counts, at_once or len(prompts)))
    return time.perf_counter() - began, times


def waits(times: Sequence[Sequence[float]]) -> tuple[list[float], list[float]]:
    """Seconds to each stream's first event, and between all others; both sorted."""
    firsts = sorted(one[1] - one[0] for one in times)
    return firsts, sorted(b - a for one in times for a, b in pairwise(one[1:]))


async def _all(
    port: int, prompts: Sequence[list[int]], counts: Sequence[int], at_once: int
) -> list[list[float]]:
    waiting = iter(zip(prompts, counts, strict=True))

    async def one_after_another() -> list[list[float]]:
        return [await _stream(port, prompt, count) for prompt, count in waiting]

    streams = await asyncio.gather(*[one_after_another() for _ in range(at_once)])
    return [times for stream in streams for times in stream]


async def _stream(port: int, prompt: list[int], count: int) -> list[float]:
    """When the request was sent, and when each event with text came. Plain sockets: a client
    library would cost more than the server."""
    body = json.dumps(
        {
            "model": "bench",
            "prompt": prompt,
            "max_tokens": count,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    times = [time.perf_counter()]
    writer.write(
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    )
    writer.write(body)
    status = await reader.readline()
    if b" 200 " not in status:
        raise RuntimeError(f"the server answered {(status + await reader.read(2000))!r}")
    made = None
    async for line in reader:
        if not line.startswith(b"data: {"):
            continue
        event = json.loads(line[len(b"data: ") :])
        if "error" in event:
            raise RuntimeError(f"a stream broke: {event['error']}")
        if event["choices"]:
            times.append(time.perf_counter())
        if event.get("usage"):
            made = event["usage"]["completion_tokens"]
    writer.close()
    if made != count:
        raise RuntimeError(f"asked for {count} tokens, the server counted {made}")
    return times


@contextlib.contextmanager
def _server(setup: Setup) -> Iterator[int]:
    port = free_port()
    command = [sys.executable, "-c", MAIN, "serve", str(setup.model), "--port", str(port)]
    command += ["--device", setup.device, "--dtype", setup.dtype, "--served-model-name", "bench"]
    for name, value in setup.settings.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        wait_for_server(process, port, START_S)
        yield port
    finally:
        process.terminate()
        process.wait(timeout=60)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_server(process: "subprocess.Popen[bytes]", port: int, start_s: float) -> None:
    """Until /health answers. Raises RuntimeError: it ended, or the time did."""
    deadline = time.monotonic() + start_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with status {process.returncode}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise RuntimeError(f"the server was not ready after {start_s:.0f} s")


def quantile(values: Sequence[float], share: float) -> float:
    """Of sorted values; NaN of none."""
    return values[min(len(values) - 1, int(len(values) * share))] if values else float("nan")
