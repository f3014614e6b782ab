"""Workers and servers as process groups of their own: asked, paused, measured, ended."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil

END_S = 20  # a group that was asked to end


class PeerError(Exception):
    """A peer said no, broke, or took too long. The run goes on without it."""


@dataclass(frozen=True)
class Memory:
    """Of a process and all below it, bytes."""

    rss: int  # resident: a page that n processes share counts n times
    pss: int  # proportional: it counts once

    def most(self, other: "Memory") -> "Memory":
        return Memory(max(self.rss, other.rss), max(self.pss, other.pss))


class Group:
    """A command in a session of its own, so that all of its processes can be signalled at once."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        talks: bool = True,
    ) -> None:
        """`environment` is added to this process's own; standard error goes to the end of `log`.

        One that `talks` has pipes for standard input and output; else its output goes to the log.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE if talks else subprocess.DEVNULL,
                stdout=subprocess.PIPE if talks else errors,
                stderr=errors,
                env={**os.environ, **environment},
                start_new_session=True,
            )

    @property
    def stdin(self) -> IO[bytes]:
        assert self.process.stdin is not None
        return self.process.stdin

    @property
    def stdout(self) -> IO[bytes]:
        assert self.process.stdout is not None
        return self.process.stdout

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    def memory(self) -> Memory:
        rss = pss = 0
        for process in self._members():
            with contextlib.suppress(psutil.Error):
                full = process.memory_full_info()
                rss, pss = rss + full.rss, pss + full.pss
        return Memory(rss, pss)

    def end(self) -> None:
        """Ask first, then kill. Safe to call twice."""
        below = [one for one in self._members() if one.pid != self.process.pid]
        self._signal(signal.SIGTERM)
        self.go_on()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(END_S)
        _, alive = psutil.wait_procs(below, timeout=END_S)
        for process in alive:
            with contextlib.suppress(psutil.Error):
                process.kill()
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def _members(self) -> list[psutil.Process]:
        """All of the group, and all below its leader; the leader too, unless it has ended."""
        found = {}
        for process in psutil.process_iter():
            with contextlib.suppress(OSError):
                if os.getpgid(process.pid) == self.process.pid:
                    found[process.pid] = process
        if self.process.pid in found:
            with contextlib.suppress(psutil.Error):
                for process in found[self.process.pid].children(recursive=True):
                    found[process.pid] = process
        return list(found.values())

    def _signal(self, number: int) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, number)


class Worker:
    """A group that speaks `workers/protocol.py`."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.began = time.perf_counter()
        self.group = Group(command, environment, log)
        self._lines: queue.Queue[bytes] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def ask(self, timeout_s: float, **request: object) -> dict[str, Any]:
        """Send a request, wait for its answer.

        Raises:
            PeerError: it answered with an error, ended, or did not answer in time (then it is
                ended here).
        """
        try:
            self.group.stdin.write(json.dumps(request).encode() + b"\n")
            self.group.stdin.flush()
            line = self._lines.get(timeout=timeout_s)
        except queue.Empty:
            self.group.end()
            raise PeerError(f"no answer to {request['do']} within {timeout_s:.0f} s") from None
        except (OSError, ValueError):  # ValueError: the pipe was closed here
            line = b""
        if not line:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.group.process.wait(END_S)  # or `end` would take its status for its own
            self.group.end()
            raise PeerError(
                f"its process ended with status {self.group.process.returncode}; the end of"
                f" {self.group.log}: {last_words(self.group.log)}"
            )
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PeerError(answer["error"])
        return answer

    def close(self) -> None:
        with contextlib.suppress(PeerError):
            self.group.go_on()
            self.ask(END_S, do="close")
        self.group.end()

    def _read(self) -> None:
        for line in self.group.stdout:
            self._lines.put(line)
        self._lines.put(b"")


@contextlib.contextmanager
def watched(group: Group, every_s: float = 0.1) -> Iterator[list[Memory]]:
    """The largest memory of the group while inside, in a list of one."""
    peak = [group.memory()]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(every_s):
            peak[0] = peak[0].most(group.memory())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()
        peak[0] = peak[0].most(group.memory())


def last_words(log: Path, lines: int = 3) -> str:
    words = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-lines:]
    return " | ".join(line.strip()[:200] for line in words)
