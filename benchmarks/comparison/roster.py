"""Who is loaded. One of them computes at a time; the others are stopped, or not loaded at all."""

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil

from comparison.processes import Memory, PeerError, Worker, watched
from comparison.variants import Job, Peers, Variant

LOAD_S = 1800  # the first load of some compiles
ASK_S = 1800
WARM = [[1, 2, 3, 4]], [4]
SETTLE_S = 2  # what some still do after their start: paused, they would do it while measured
ROOM = 2 << 30  # bytes that stay free when one more is loaded


class Gate:
    """A command that keeps the rest of the machine quiet while something is timed.

    It says a line when the machine is quiet, and ends when its standard input does.
    """

    def __init__(self, command: str) -> None:
        self.command = command

    @contextlib.contextmanager
    def closed(self) -> Iterator[None]:
        if not self.command:
            yield
            return
        with subprocess.Popen(
            self.command, shell=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            if not process.stdout.readline():
                raise SystemExit(f"{self.command!r} ended without saying that it is quiet")
            try:
                yield
            finally:
                process.stdin.close()


class Roster:
    """Loads when needed, and unloads the one that ran longest ago when memory gets short."""

    def __init__(self, peers: Peers, job: Job, gate: Gate) -> None:
        self.peers, self.job, self.gate = peers, job, gate
        self.facts: dict[str, Mapping[str, object]] = {}
        self.outputs: list[list[int]] = []  # of the last answer
        self._loaded: dict[str, Worker] = {}  # the last used is last
        self._sizes: dict[str, int] = {}  # bytes, once known

    @contextlib.contextmanager
    def on(self, variant: Variant) -> Iterator["Roster"]:
        """Only this one runs inside, and the machine is quiet.

        Raises:
            PeerError: it cannot be loaded.
        """
        worker = self._loaded.pop(variant.name, None) or self._load(variant)
        self._loaded[variant.name] = worker
        try:
            with self.gate.closed():
                worker.group.go_on()
                try:
                    self._generate(worker, *WARM)
                    yield self
                finally:
                    worker.group.pause()
        except PeerError:
            self._loaded.pop(variant.name).group.end()
            raise

    def ask(self, prompts: Sequence[list[int]], max_tokens: Sequence[int]) -> float:
        """Seconds that the worker needed, as it measured them itself."""
        return self._generate(next(reversed(self._loaded.values())), prompts, max_tokens)

    def ready(self, variant: Variant) -> float:
        """Seconds from the start of a process to the first token of a short prompt."""
        command, request = self.peers.worker(variant, self.job)
        self._make_room(variant)
        with self.gate.closed():
            began = time.perf_counter()
            worker = self._start(command.arguments, command.environment, variant.name)
            try:
                worker.ask(LOAD_S, do="load", **request)
                self._generate(worker, [[1, 2, 3, 4]], [1])
                return time.perf_counter() - began
            finally:
                worker.close()

    def memory(
        self, variant: Variant, prompts: Sequence[list[int]], max_tokens: Sequence[int]
    ) -> tuple[Memory, Mapping[str, object]]:
        """The largest memory of a fresh worker while it starts and generates, and its facts."""
        command, request = self.peers.worker(variant, self.job)
        self._make_room(variant)
        worker = self._start(command.arguments, command.environment, variant.name)
        try:
            with watched(worker.group) as peak:
                facts = worker.ask(LOAD_S, do="load", **request)["facts"]
                self._generate(worker, prompts, max_tokens)
            return peak[0], facts
        finally:
            worker.close()

    def close(self) -> None:
        for worker in self._loaded.values():
            worker.close()
        self._loaded.clear()

    def _load(self, variant: Variant) -> Worker:
        command, request = self.peers.worker(variant, self.job)
        self._make_room(variant)
        worker = self._start(command.arguments, command.environment, variant.name)
        try:
            self.facts[variant.name] = worker.ask(LOAD_S, do="load", **request)["facts"]
            self._generate(worker, *WARM)
        except PeerError:
            worker.group.end()
            raise
        time.sleep(SETTLE_S)
        self._sizes[variant.name] = worker.group.memory().pss
        worker.group.pause()
        return worker

    def _make_room(self, variant: Variant) -> None:
        """What it had last time, or twice what the weights and the KV cache seem to need."""
        weights = sum(file.stat().st_size for file in self.job.model.glob("*.safetensors"))
        need = self._sizes.get(variant.name, 3 * weights + self.job.kv_bytes(4))
        while self._loaded and psutil.virtual_memory().available < need + ROOM:
            oldest = next(iter(self._loaded))
            self._loaded.pop(oldest).close()

    def _start(self, arguments: Sequence[str], environment: Mapping[str, str], name: str) -> Worker:
        return Worker(arguments, environment, self.peers.cache / "logs" / f"{name}.log")

    def _generate(
        self, worker: Worker, prompts: Sequence[list[int]], max_tokens: Sequence[int]
    ) -> float:
        answer = worker.ask(ASK_S, do="generate", prompts=prompts, max_tokens=max_tokens)
        self.outputs = answer["outputs"]
        made = [len(output) for output in self.outputs]
        if made != list(max_tokens):
            raise PeerError(f"asked for {list(max_tokens)} tokens, got {made}")
        return float(answer["seconds"])


class Ceilings:
    """What the machine can read and multiply, measured in a process of its own."""

    def __init__(self, cache: Path, threads: int, gate: Gate) -> None:
        script = Path(__file__).parent / "workers" / "run_ceilings.py"
        self.gate = gate
        self.worker = Worker(
            [sys.executable, str(script), str(threads)], {}, cache / "logs" / "ceilings.log"
        )
        self.worker.group.pause()

    def measure(self) -> dict[str, float]:
        """`read_gb_per_s` and `matmul_gflop_per_s`."""
        with self.gate.closed():
            self.worker.group.go_on()
            try:
                return self.worker.ask(ASK_S, do="measure")
            finally:
                self.worker.group.pause()

    def close(self) -> None:
        self.worker.group.end()
