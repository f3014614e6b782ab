"""Runs the parts, each in a process of its own, within the time that there is."""

import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from accelerator.budget import Budget
from accelerator.job import Job
from accelerator.records import Check, Fact, Record, Value, from_json

BENCHMARKS = Path(__file__).parents[1]
#: Restarts of a part whose process died or broke the device.
RESTARTS = 3
#: Longer than asked for, before a process is ended: it looks at the time itself.
PATIENCE_S = 10.0


@dataclass(frozen=True)
class Part:
    """`module` under `accelerator`, with `arguments`; `title` is what people read."""

    title: str
    module: str
    share_s: float
    least_s: float = 10.0
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Results:
    facts: dict[str, str | float] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    not_run: dict[str, str] = field(default_factory=dict)  # what, and why
    seconds: dict[str, float] = field(default_factory=dict)  # that each part took

    def add(self, record: Record) -> None:
        match record:
            case Fact():
                self.facts[record.name] = record.value
            case Check():
                self.checks.append(record)
            case Value():
                self.values.append(record)


@dataclass
class _Seen:
    """What one part's processes have said so far."""

    plan: list[str] = field(default_factory=list)
    current: str | None = None
    done: set[str] = field(default_factory=set)


class Conductor:
    def __init__(
        self,
        job: Job,
        budget: Budget,
        logs: Path,
        tell: Callable[[str], None] = print,
        worker: Sequence[str] = (sys.executable, "-m", "accelerator.worker"),
    ) -> None:
        self.job, self.budget, self.results = job, budget, Results()
        self._logs, self._tell, self._worker = logs, tell, worker

    def run(self, *parts: Part) -> None:
        """Several parts at the same time share the time of the longest: none of them may measure.

        What cannot be run is noted in `results.not_run`; nothing is raised.
        """
        share_s, least_s = max(p.share_s for p in parts), min(p.least_s for p in parts)
        seconds = self.budget.grant(share_s, least_s)
        if seconds is None:
            for part in parts:
                self._not_run(part.title, f"{self.budget.left_s:.0f} s were left of the budget")
            return
        with ThreadPoolExecutor(len(parts)) as threads:
            for done in [threads.submit(self._run, part, seconds) for part in parts]:
                done.result()

    def _run(self, part: Part, seconds: float) -> None:
        began, seen = time.monotonic(), _Seen()
        ends_at = began + seconds
        for attempt in range(1 + RESTARTS):
            left = ends_at - time.monotonic()
            if attempt and left < part.least_s:
                break
            reason = self._attempt(part, seen, left)
            if seen.current is not None:
                self._not_run(f"{part.title}, {seen.current}", reason)
                seen.done.add(seen.current)
                seen.current = None
            elif not seen.plan:
                self._not_run(part.title, reason)
                break
            if set(seen.plan) <= seen.done:
                break
        for name in seen.plan:
            if name not in seen.done:
                self._not_run(f"{part.title}, {name}", "the part's time was over")
        self.results.seconds[part.title] = time.monotonic() - began
        self._tell(f"{part.title}: {self.results.seconds[part.title]:.0f} s")

    def _attempt(self, part: Part, seen: _Seen, seconds: float) -> str:
        """One process. Why it ended."""
        job = replace(
            self.job,
            part=part.module,
            arguments=part.arguments,
            facts=dict(self.results.facts),
            done=frozenset(seen.done),
            seconds=seconds,
        )
        ends_at = time.monotonic() + seconds + PATIENCE_S
        broken = None
        log = self._logs / (re.sub(r"[^a-z0-9.]+", "-", part.title.lower()) + ".log")
        with self._process(job, log) as (process, answers):
            while (left := ends_at - time.monotonic()) > 0:
                try:
                    line = answers.get(timeout=left)
                except queue.Empty:
                    continue
                if line is None:
                    status = process.wait()
                    return broken or f"its process ended with status {status}: {_end(log)}"
                broken = self._heed(part, seen, json.loads(line)) or broken
                if seen.plan and set(seen.plan) <= seen.done:
                    return "done"  # whatever it still has to close ends with it
        return f"ended after {seconds + PATIENCE_S:.0f} s"

    def _heed(self, part: Part, seen: _Seen, answer: Mapping[str, Any]) -> str | None:
        """Take one answer in; what broke the device, if it says so."""
        if "plan" in answer:
            seen.plan = answer["plan"]
        elif "begin" in answer:
            seen.current = answer["begin"]
        elif "end" in answer:
            seen.current = None
            seen.done.add(answer["end"])
            if answer["reason"] is not None:
                self._not_run(f"{part.title}, {answer['end']}", answer["reason"])
        elif "broken" in answer:
            return f"the device broke: {answer['broken']}"
        elif "refused" in answer:
            return str(answer["refused"])
        else:
            record = from_json(answer)
            self.results.add(record)
            self._tell(_told(record))
        return None

    def _not_run(self, what: str, why: str) -> None:
        self.results.not_run[what] = why
        self._tell(f"{what}: {why}")

    @contextlib.contextmanager
    def _process(
        self, job: Job, log: Path
    ) -> Iterator[tuple[subprocess.Popen[str], "queue.SimpleQueue[str | None]"]]:
        """A worker and the lines that it says, None after the last; its group ends with the
        block."""
        paths = [str(BENCHMARKS), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        with log.open("a", encoding="utf-8") as errors:
            process = subprocess.Popen(
                [*self._worker, job.to_json()],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
                start_new_session=True,
            )
        assert process.stdout is not None
        answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        reader = threading.Thread(target=_read, args=(process.stdout, answers), daemon=True)
        reader.start()
        try:
            yield process, answers
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its own group: it leads a session
            process.wait()
            reader.join()
            process.stdout.close()


def _read(lines: Any, answers: "queue.SimpleQueue[str | None]") -> None:
    for line in lines:
        answers.put(line)
    answers.put(None)


def _end(log: Path) -> str:
    """The last line that was said, and where the others are."""
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "nothing was said")
    return f"{last[:300]} ({log})"


def _told(record: Record) -> str:
    match record:
        case Fact():
            value = f"{record.value:,.4g}" if isinstance(record.value, float) else record.value
            return f"{record.name}: {value}"
        case Check():
            return f"{'PASS' if record.passed else 'FAIL'} {record.name}: {record.detail}"
        case Value():
            floor = f" (floor {record.floor:,.4g})" if record.floor else ""
            return f"{record.name}, {record.who}: {record.value:,.4g} {record.unit}{floor}"
