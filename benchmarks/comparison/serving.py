"""The `http` workload: concurrent streams against each peer's OpenAI server."""

import contextlib
import random
from collections.abc import Iterator
from dataclasses import replace

from http_streams import free_port, quantile, stream, wait_for_server, waits

from comparison.cases import Size, mixture
from comparison.processes import Group, PeerError, last_words
from comparison.results import Measure
from comparison.roster import LOAD_S, Gate
from comparison.variants import Job, Peers, Variant

STREAMS = (1, 4, 16, 64)
# Each stream sends one request after another, so that prompts come while others decode; in all:
REQUESTS_A_STREAM, MOST_REQUESTS = 4, 64


def measure(
    variant: Variant, job: Job, peers: Peers, gate: Gate, seed: str, size: Size
) -> Iterator[tuple[Measure, float]]:
    """Throughput, and the 99th percentiles of the waits for first and for later events.

    Raises:
        PeerError: the peer has no server, or it does not start, or a stream broke.
    """
    with _server(variant, replace(job, requests=max(STREAMS)), peers) as (
        group,
        port,
    ):
        for streams in STREAMS:
            requests = min(REQUESTS_A_STREAM * streams, MOST_REQUESTS)
            prompts, counts = mixture(random.Random(f"{seed} {streams}"), requests, size)
            try:
                group.pause()
                with gate.closed():
                    group.go_on()
                    seconds, times = stream(port, prompts, counts, streams)
            except (RuntimeError, OSError) as error:
                raise PeerError(f"{streams} streams: {error}") from error
            firsts, gaps = waits(times)
            name = f"http-{streams}"
            yield Measure(name, "output tok/s", True), sum(counts) / seconds
            yield Measure(name, "s, first token p99", False), quantile(firsts, 0.99)
            yield Measure(name, "s, between tokens p99", False), quantile(gaps, 0.99)


@contextlib.contextmanager
def _server(variant: Variant, job: Job, peers: Peers) -> Iterator[tuple[Group, int]]:
    port = free_port()
    log = peers.cache / "logs" / f"{variant.name}-server.log"
    command = peers.server(variant, job, port)
    group = Group(command.arguments, command.environment, log, talks=False)
    try:
        wait_for_server(group.process, port, LOAD_S)
        yield group, port
    except RuntimeError as error:
        raise PeerError(f"{error}; the end of {log}: {last_words(log)}") from error
    finally:
        group.end()
