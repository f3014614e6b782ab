"""One of the ranks 1 … N-1: `python -m engine.ranks.process RANK DESCRIPTOR`.

It talks with rank 0 through the inherited socket, and ends when told to, when it fails, and when
rank 0 is gone: then its standard input, the other end of which rank 0 holds, comes to an end.
"""

import gc
import importlib
import logging
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

from engine import garbage
from engine.batch import Batch
from engine.errors import EngineError
from engine.platform.runner import Pending, Runner
from engine.ranks.messages import Failed, Joining, Load, Loaded, Reset, Start, Stop, ToRank
from engine.watchdog import Watchdog

#: Exit code after a failure that was reported to rank 0.
FAILED = 1

#: Of the step timeout: rank 0 ends all processes at its end, and stacks are to be shown before.
SHARE = 0.8

#: (settings, rank, joining): `joining` is called before the rank meets the others.
_Make = Callable[[Mapping[str, Any], int, Callable[[], None]], Runner]

log = logging.getLogger(__name__)


class Follower:
    """Does what rank 0 does, at the same time."""

    def __init__(
        self, runner: Runner, connection: Connection, step_timeout_s: float | None
    ) -> None:
        self._runner = runner
        self._connection = connection
        self._pending: deque[Pending] = deque()
        self._watchdog = Watchdog(SHARE * (step_timeout_s or 0.0), lambda began: None)

    def run(self) -> None:
        """Return when told to stop."""
        while True:
            while self._pending and not self._connection.poll():
                self._settle()
            message: ToRank = self._connection.recv()
            match message:
                case Batch():
                    with self._watchdog:
                        self._pending.append(self._runner.execute(message))
                    if len(self._pending) > 1:
                        self._settle()
                case Load():
                    num_blocks = self._runner.load()
                    gc.freeze()  # as the engine's process does
                    self._connection.send(Loaded(num_blocks))
                case Reset():
                    while self._pending:
                        self._settle()
                    self._runner.reset()
                case Stop():
                    return
                case Start():
                    raise AssertionError("a rank was started twice")

    def _settle(self) -> None:
        """See the oldest step end: the tokens are rank 0's affair, its errors are not."""
        with self._watchdog:
            self._pending.popleft().result()


def main(rank: int, connection: Connection) -> int:
    """Follow rank 0; the exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to a whole group: rank 0 decides
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_rank_0, daemon=True).start()
    try:
        start: Start = connection.recv()
        sys.path[:] = start.path
        module, _, function = start.target.partition(":")
        with garbage.kept_for_later():
            make: _Make = vars(importlib.import_module(module))[function]
            runner = make(start.settings, rank, lambda: connection.send(Joining()))
        Follower(runner, connection, start.step_timeout_s).run()
        runner.close()
    except EOFError:
        return 0  # rank 0 is gone
    except BaseException as error:
        if not isinstance(error, EngineError):
            log.exception("the rank failed")
        try:
            connection.send(Failed.of(error))
        except OSError:
            return FAILED  # nobody is left who wants to know
        return FAILED
    return 0


def _end_with_rank_0() -> None:
    """Wait for the end of standard input, which comes when rank 0 ends, however it ends."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os._exit(FAILED)  # at once: a step may take long, and nobody waits for it


if __name__ == "__main__":
    number = int(sys.argv[1])
    logging.basicConfig(
        level=logging.INFO, format=f"%(levelname)s rank {number} %(name)s: %(message)s"
    )
    code = main(number, Connection(int(sys.argv[2])))
    sys.stdout.flush()
    sys.stderr.flush()
    # Not `sys.exit`: libraries of the device may wait for threads that never end. And at once, for
    # the others may wait for this rank in a collective, until its sockets are closed.
    os._exit(code)
