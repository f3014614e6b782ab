"""The engine process: `python -m engine.client.process ADDRESS`.

It connects to its client's socket, builds the engine that the first message describes, and then
runs the loop. It ends when told to, when the engine fails, and when its client is gone: then its
standard input, the other end of which the client holds, comes to an end.
"""

import gc
import logging
import os
import signal
import sys
import threading

from engine.client.messages import (
    Abort,
    Died,
    Failure,
    FromClient,
    Progress,
    Ready,
    Start,
    Stop,
    Submit,
)
from engine.client.target import Engine, build
from engine.client.wire import EngineWire, Unreadable
from engine.errors import ConfigError, EngineError
from engine.request import Delta
from engine.watchdog import Watchdog, hang_error

#: Exit code after a failure that was reported to the client.
FAILED = 1

#: Step timeouts after which a process whose watchdog cannot run ends itself, and seconds on top.
KILL_TIMEOUTS, KILL_S = 2.0, 60.0

log = logging.getLogger(__name__)


class EngineProcess:
    """Runs one engine for the client at the other end of the wire."""

    def __init__(self, engine: Engine, wire: EngineWire) -> None:
        self._engine = engine
        self._loop = engine.loop
        self._wire = wire
        self._stopped = False
        self._accepted: list[str] = []
        self._refused: list[tuple[str, Failure]] = []
        self._deltas: list[Delta] = []
        self._stats = engine.loop.stats
        timeout_s = engine.facts.step_timeout_s or 0.0
        kill_s = KILL_TIMEOUTS * timeout_s + KILL_S
        self._watchdog = Watchdog(timeout_s, self._die_hung, kill_s=kill_s)

    def run(self) -> None:
        """Return when told to stop; an idle engine sleeps until a message comes.

        Raises:
            Exception: whatever the loop raises: then the engine is done for.
        """
        self._wire.send(Ready(self._engine.facts, self._stats))
        try:
            self._run()
        finally:
            self._watchdog.close()

    def _run(self) -> None:
        while True:
            self._take_messages()
            if self._stopped:
                return
            if not self._loop.idle:
                with self._watchdog:
                    self._deltas += self._loop.step()
            self._report()

    def _take_messages(self) -> None:
        wait = self._loop.idle
        while not self._stopped:
            message = self._wire.receive(wait=wait)
            if message is None:
                return
            self._take(message)
            wait = False

    def _take(self, message: FromClient | Unreadable) -> None:
        match message:
            case Submit(submission):
                try:
                    self._loop.submit(submission)
                except EngineError as error:
                    self._refused.append((submission.id, Failure.of(error)))
                else:
                    self._accepted.append(submission.id)
            case Abort(id):
                self._deltas += self._loop.abort(id)
            case Stop():
                self._stopped = True
            case Start():
                log.error("the engine was told to start, but it has")
            case Unreadable(reason=reason):  # must not end the others' requests
                log.error("a message could not be read: %s", reason)
                if (waiting := message.submission_id) is not None:
                    self._refused.append((waiting, Failure("RequestError", reason)))

    def _die_hung(self, began: float) -> None:
        """In the watchdog's thread: the one that steps can do nothing, not even end."""
        self._wire.send_last(Died(Failure.of(hang_error(self._watchdog.timeout_s))))
        os._exit(FAILED)

    def _report(self) -> None:
        """All news in one message."""
        stats = self._loop.stats
        if not (self._accepted or self._refused or self._deltas or stats != self._stats):
            return
        self._wire.send(Progress(stats, self._accepted, self._refused, self._deltas))
        self._accepted, self._refused, self._deltas = [], [], []
        self._stats = stats


def main(address: str) -> int:
    """Serve the client at `address`; the exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to a whole group: the client decides
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_client, daemon=True).start()
    wire = EngineWire(address)
    try:
        return _serve(wire)
    except Exception as error:
        if not isinstance(error, EngineError):
            log.exception("the engine failed")
        wire.send(Died(Failure.of(error)))
        return FAILED
    finally:
        wire.close()


def _serve(wire: EngineWire) -> int:
    start = wire.receive(wait=True)
    if not isinstance(start, Start):
        raise ConfigError(f"the first message must be Start, not {type(start).__name__}")
    sys.path[:] = start.path
    engine = build(start.target, start.settings)
    gc.freeze()  # all of it stays: a look for garbage in it would stop every request for a while
    try:
        EngineProcess(engine, wire).run()
    finally:
        engine.close()
    return 0


def _end_with_client() -> None:
    """Wait for the end of standard input, which comes when the client ends, however it ends."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os._exit(FAILED)  # at once: a step may take long, and nobody waits for it


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    code = main(sys.argv[1])
    sys.stdout.flush()
    sys.stderr.flush()
    # Not `sys.exit`: libraries of the device may wait for threads that never end.
    os._exit(code)
