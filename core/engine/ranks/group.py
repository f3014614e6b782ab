"""The processes of ranks 1 … N-1, as rank 0 sees them."""

import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from signal import Signals
from typing import Any, TypeVar

from engine.errors import EngineDeadError, EngineError
from engine.ranks.messages import Failed, FromRank, Start, Stop, ToRank

#: How long a rank may take to find its device and import what drives it, in seconds.
JOIN_S = 600.0

#: How long after an error of rank 0's the cause may become known at another rank.
EXPLAIN_S = 3.0

#: How long a rank may take to end before it is killed: less than clients wait for rank 0.
PATIENCE_S = 3.0

LOOPBACK = "127.0.0.1"

T = TypeVar("T", bound=FromRank)
Environment = Callable[[int], Mapping[str, str]]

log = logging.getLogger(__name__)


class RankProcess:
    """One other rank. Its standard input is open, and empty, as long as rank 0 lives."""

    def __init__(self, rank: int, environment: Mapping[str, str]) -> None:
        self.rank = rank
        self.inbox: list[FromRank] = []
        self.failed: Failed | None = None
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "engine.ranks.process", str(rank), str(theirs.fileno())],
                stdin=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                env=dict(environment),
            )
        self.connection = Connection(ours.detach())

    def describe_exit(self) -> str:
        """Waits for the end, which is near: the connection was closed."""
        try:
            code = self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            return "its process closed the connection"
        how = f"by {Signals(-code).name}" if code < 0 else f"with exit code {code}"
        return f"its process ended {how}"

    def stop(self) -> None:
        """Wait for the end, which is under way, and after a while kill it."""
        try:
            self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        assert self.process.stdin is not None
        self.process.stdin.close()


class RankGroup:
    """Made by `start`. Belongs to one thread; another one listens to what the ranks say."""

    def __init__(self, size: int, restore: Mapping[str, str | None]) -> None:
        self.size = size
        self._ranks: list[RankProcess] = []
        self._restore = restore
        self._news = threading.Condition()
        self._listener: threading.Thread | None = None
        self._closed = False

    @classmethod
    def start(
        cls,
        target: str,
        settings: Mapping[str, Any],
        size: int,
        environment: Environment,
        *,
        step_timeout_s: float | None = None,
    ) -> "RankGroup":
        """Start ranks 1 to size - 1.

        They and this process, which is rank 0, meet at the address in MASTER_ADDR and MASTER_PORT,
        which are set until `close`, as torch's launcher sets them, with WORLD_SIZE and RANK.

        Args:
            target: what a rank runs, a "module:function" of (settings, rank, joining).
            environment: the variables of a rank, set before it imports torch. What this process has
                otherwise than `environment(0)` is the user's own choice, and stays.
            step_timeout_s: after so long, a rank whose step has not ended shows where it is.
        """
        meeting = {
            "MASTER_ADDR": LOOPBACK,
            "MASTER_PORT": str(_free_port()),
            "WORLD_SIZE": str(size),
        }
        mine = {**meeting, "RANK": "0", "LOCAL_RANK": "0"}
        group = cls(size, {name: os.environ.get(name) for name in mine})
        os.environ.update(mine)
        try:
            for rank in range(1, size):
                own = _own_environment(environment, rank)
                place = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                group._ranks.append(RankProcess(rank, {**os.environ, **own, **place}))
            group._listener = threading.Thread(target=group._listen, name="ranks", daemon=True)
            group._listener.start()
            group.send(Start(target, dict(settings), list(sys.path), step_timeout_s))
        except BaseException:
            group.close()
            raise
        return group

    @property
    def failed(self) -> bool:
        """Whether a rank failed or ended. Two attribute look-ups a rank."""
        return any(one.failed is not None for one in self._ranks)

    def send(self, message: ToRank) -> None:
        """To every rank.

        Raises:
            EngineError: one of them failed.
        """
        data = ForkingPickler.dumps(message)
        try:
            for one in self._ranks:
                one.connection.send_bytes(data)
        except OSError as error:
            raise self.explain(error) from error

    def await_each(self, kind: type[T], what: str, timeout_s: float) -> list[T]:
        """The next message of every rank, which must be of this kind.

        Raises:
            EngineError: a rank failed, or did not say it in time; `what` names what it was to do.
        """
        until = time.monotonic() + timeout_s
        with self._news:
            while not all(one.inbox for one in self._ranks):
                if self.failed:
                    raise self._cause()
                left_s = until - time.monotonic()
                if left_s <= 0:
                    silent = next(one for one in self._ranks if not one.inbox)
                    raise EngineDeadError(
                        f"{self._name(silent)} did not {what} within {timeout_s:g} s;"
                        " the log may say why"
                    )
                self._news.wait(left_s)
            found = [one.inbox.pop(0) for one in self._ranks]
        assert all(isinstance(message, kind) for message in found), found
        return found  # type: ignore[return-value]  # just checked

    def explain(self, error: BaseException) -> EngineError:
        """What made rank 0 fail: another rank's failure, if one becomes known soon, or itself."""
        until = time.monotonic() + EXPLAIN_S
        with self._news:
            while not self.failed and (left_s := until - time.monotonic()) > 0:
                self._news.wait(left_s)
            if self.failed:
                return self._cause()
        if isinstance(error, EngineError):
            return error
        return EngineDeadError(f"rank 0 of {self.size} failed: {type(error).__name__}: {error}")

    def close(self) -> None:
        """End all of them. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        for one in self._ranks:
            with suppress(OSError):
                one.connection.send(Stop())
        for one in self._ranks:
            if self.failed:
                one.process.kill()  # it may wait for one that is gone
            one.stop()
        if self._listener is not None:
            self._listener.join()
        for one in self._ranks:
            one.connection.close()
        for name, value in self._restore.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    def _listen(self) -> None:
        by_connection = {one.connection: one for one in self._ranks}
        while by_connection:
            for ready in wait(list(by_connection)):
                assert isinstance(ready, Connection)
                one = by_connection[ready]
                try:
                    message: FromRank = ready.recv()
                except (EOFError, OSError):
                    del by_connection[ready]
                    self._note_end(one)
                    continue
                if isinstance(message, Failed):
                    log.error("%s failed: %s", self._name(one), message.message)
                with self._news:
                    if isinstance(message, Failed):
                        one.failed = message
                    else:
                        one.inbox.append(message)
                    self._news.notify_all()

    def _note_end(self, one: RankProcess) -> None:
        if self._closed or one.failed is not None:
            return
        how = one.describe_exit()
        log.error("%s failed: %s", self._name(one), how)
        with self._news:
            one.failed = Failed("EngineDeadError", f"{how}; the log may say why")
            self._news.notify_all()

    def _cause(self) -> EngineError:
        """Of the first failure: one that was told, rather than an end that it led to."""
        failures = [(one, one.failed) for one in self._ranks if one.failed is not None]
        one, failed = min(failures, key=lambda found: "its process" in found[1].message)
        return failed.error(self._name(one))

    def _name(self, one: RankProcess) -> str:
        return f"rank {one.rank} of {self.size}"


def _own_environment(environment: Environment, rank: int) -> dict[str, str]:
    """What rank `rank` needs. Rank 0's own values may stand in this process already."""
    first = environment(0)
    return {
        name: value
        for name, value in environment(rank).items()
        if os.environ.get(name) in (None, first.get(name))
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port
