"""A client of an engine that runs in a process of its own."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from typing import Any

from engine.client.child import ChildProcess
from engine.client.messages import (
    Abort,
    Died,
    FromEngine,
    Progress,
    Ready,
    Start,
    Stop,
    Submit,
)
from engine.client.stream import DeltaStream
from engine.client.target import ASSEMBLE
from engine.client.wire import ClientWire
from engine.errors import EngineDeadError, EngineError, RequestError
from engine.facts import EngineFacts, Stats
from engine.request import Delta, Submission

#: How long an engine may take to end or to abort before it is no longer waited for.
PATIENCE_S = 5.0

#: How long to look for an ended process's last words. They were written before it ended.
LAST_WORDS_MS = 20


class AsyncEngine:
    """Made by `start`. All its methods belong to the event loop that it was started in."""

    facts: EngineFacts

    def __init__(self, child: ChildProcess, wire: ClientWire) -> None:
        self.stats = Stats()  # the newest
        self.on_stats: Callable[[Stats], None] | None = None  # called whenever the engine reports
        self.died: EngineDeadError | None = None
        self.draining = False
        self._child = child
        self._wire = wire
        self._closed = False
        self._streams: dict[str, DeltaStream] = {}
        self._changed = asyncio.Event()  # a stream ended, or the engine did
        self._dead = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    @classmethod
    async def start(
        cls,
        settings: Mapping[str, Any],
        *,
        target: str = ASSEMBLE,
        on_log: Callable[[str], None] | None = None,
    ) -> "AsyncEngine":
        """Start an engine process with `EngineConfig`'s fields, and wait until it is ready.

        Loading may take any time; a process that ends is noticed at once. `target` names the
        function that makes the engine of the settings. `on_log` gets what the process prints, line
        by line; None: it prints to this process's output.

        Raises:
            EngineError: what the engine raised, ModelError or ConfigError for instance;
                EngineDeadError when the process ended without a word.
        """
        wire = ClientWire()
        try:
            child = await ChildProcess.start("engine.client.process", wire.address, on_log=on_log)
        except BaseException:
            wire.close()
            raise
        engine = cls(child, wire)
        try:
            await engine._wait_ready(Start(target, dict(settings), list(sys.path)))
        except BaseException:
            await engine.close()
            raise
        return engine

    @property
    def num_unfinished(self) -> int:
        """Submissions that the engine has not ended yet, aborted ones among them."""
        return len(self._streams)

    @property
    def exit_code(self) -> int | None:
        """Of the engine process: negative for a signal, None while it runs."""
        return self._child.exit_code

    @property
    def pid(self) -> int:
        return self._child.pid

    async def submit(self, submission: Submission) -> DeltaStream:
        """Hand the submission over; returns when it was accepted, which is before any token.

        Raises:
            RequestError: the engine refused it, or has not ended the last one of its id.
            CapacityError: it could never fit.
            EngineDeadError: the engine died, drains or was closed.
        """
        self._check_open()
        if submission.id in self._streams:
            raise RequestError(f"request id {submission.id!r} is in use", "request_id")
        stream = DeltaStream(submission, abort=self.abort, leave=self._leave)
        try:
            self._wire.send(Submit(submission))
        except (ValueError, TypeError, OverflowError) as error:
            raise RequestError(f"the request cannot be sent to the engine: {error}") from error
        self._streams[submission.id] = stream
        try:
            await stream.accepted
        except BaseException:  # also when the caller was cancelled
            await stream.aclose()
            raise
        return stream

    async def stream(self, submission: Submission) -> AsyncIterator[Delta]:
        """`submit`, and the deltas; to close the iterator aborts the request.

        Raises:
            RequestError, CapacityError, EngineDeadError: as `submit` does, before the first delta;
                EngineDeadError also between deltas.
        """
        async with await self.submit(submission) as deltas:
            async for delta in deltas:
                yield delta

    def abort(self, id: str) -> None:
        """Ask the engine to end a submission. Its stream gets a last delta for each choice that is
        unfinished, with `Finish.ABORT`. For an id that is unknown or finished, nothing happens.
        """
        if id in self._streams and self.died is None and not self._closed:
            self._wire.send(Abort(id))

    async def wait_dead(self) -> EngineDeadError:
        """Return when the engine process died of itself: not for `close`."""
        await self._dead.wait()
        assert self.died is not None
        return self.died

    async def drain(self, timeout_s: float) -> bool:
        """Take no more submissions, wait for the running ones, and abort the rest when the time
        is over. True: all ended by themselves.
        """
        self.draining = True
        if await self._wait_idle(timeout_s):
            return self.died is None
        for id in list(self._streams):
            self.abort(id)
        await self._wait_idle(PATIENCE_S)
        return False

    async def close(self) -> None:
        """End the process. Unfinished streams raise EngineDeadError. May be called twice."""
        if self._closed:
            return
        self._closed = True
        if self.exit_code is None and self.died is None:
            self._wire.send(Stop())
        try:
            await self._child.stop(PATIENCE_S)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)  # told in `died`
            self._fail_streams(EngineDeadError("the engine was closed"))
            self._wire.close()

    async def _wait_ready(self, start: Start) -> None:
        self._wire.send(start)
        ended = asyncio.create_task(self._child.wait())
        message = asyncio.create_task(self._wire.receive())
        try:
            await asyncio.wait((ended, message), return_when=asyncio.FIRST_COMPLETED)
            if not message.done():
                await asyncio.wait((message,), timeout=LAST_WORDS_MS / 1000)
            if not message.done():
                raise self._silent_death()
            match message.result():
                case Ready(facts, stats):
                    self.facts, self.stats = facts, stats
                case Died(failure):
                    raise failure.error()
                case Progress():
                    raise EngineDeadError("the engine process reported before it was ready")
        finally:
            ended.cancel()
            message.cancel()
            await asyncio.gather(ended, message, return_exceptions=True)
        self._tasks = [
            asyncio.create_task(self._read_messages()),
            asyncio.create_task(self._watch_process()),
        ]

    async def _read_messages(self) -> None:
        try:
            while self.died is None:
                self._take(await self._wire.receive())
        except Exception as error:  # nobody else would tell the streams
            self._die(EngineDeadError(f"the engine's report could not be taken: {error!r}"))
            raise

    async def _watch_process(self) -> None:
        await self._child.wait()
        if self._closed:
            return
        while self.died is None and await self._wire.poll(LAST_WORDS_MS):
            await asyncio.sleep(0)  # the reading task takes it
        self._die(self._silent_death())

    def _take(self, message: FromEngine) -> None:
        match message:
            case Progress(stats, accepted, refused, deltas):
                self.stats = stats
                for id in accepted:
                    if stream := self._streams.get(id):
                        stream.accept()
                for id, failure in refused:
                    if stream := self._streams.get(id):
                        stream.refuse(failure.error())
                for delta in deltas:
                    if stream := self._streams.get(delta.id):
                        stream.put(delta)
                if self.on_stats is not None:
                    self.on_stats(stats)
            case Died(failure):
                self._die(failure.error())
            case Ready():
                raise AssertionError("the engine became ready twice")

    def _die(self, reason: EngineError) -> None:
        if self.died is not None:
            return
        if not isinstance(reason, EngineDeadError):
            reason = EngineDeadError(f"{type(reason).__name__}: {reason}")
        self.died = reason
        self._dead.set()
        self._fail_streams(reason)

    def _silent_death(self) -> EngineDeadError:
        return EngineDeadError(
            f"the engine process ended {self._child.describe_exit()}; its output says more"
        )

    def _fail_streams(self, error: EngineDeadError) -> None:
        for stream in list(self._streams.values()):
            stream.fail(error)
        self._changed.set()

    def _leave(self, stream: DeltaStream) -> None:
        del self._streams[stream.submission.id]
        self._changed.set()

    def _check_open(self) -> None:
        if self.died is not None:
            raise self.died
        if self._closed or self.draining:
            raise EngineDeadError("the engine takes no more requests: it is shutting down")

    async def _wait_idle(self, timeout_s: float) -> bool:
        """Whether every stream ended in time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._streams:
                    self._changed.clear()
                    await self._changed.wait()
        return not self._streams
