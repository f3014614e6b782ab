"""Notices a step that does not end, shows where it is stuck, and has its requests told.

The thread that steps only writes an attribute before and after each step; a second thread looks at
it now and then:

    began    None   12.1   12.1   12.1  …  12.1         12.1: the same step, all the time
    looks     ·      ·      ·      ·    …   · on_hang
                     |------- timeout_s ----|
"""

import ctypes
import faulthandler
import logging
import signal
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from engine.errors import EngineDeadError

#: Looks during one timeout, and the longest time between two, in seconds.
LOOKS = 20
MOST_S = 1.0

#: How long an interruption that was sent may need to arrive.
ARRIVAL_S = 0.1

_STDERR = 2  # not `sys.stderr`, which may be no file

T = TypeVar("T")

log = logging.getLogger(__name__)


def hang_error(timeout_s: float) -> EngineDeadError:
    """What everyone who waits for a hanging engine is told."""
    return EngineDeadError(
        f"a step did not end within {timeout_s:g} s (step_timeout_s), so the engine counts as hung:"
        " its device does not answer, or the step is larger than it can compute in that time."
        " The engine's log shows where every thread was. Start the engine anew; if steps may take"
        " so long, raise step_timeout_s or lower max_batch_tokens"
    )


class Watchdog:
    """`with watchdog:` around each step. `on_hang` is called from the watchdog's thread, with the
    step's `began`, and again after each further `timeout_s`.

    Time during which the whole process stood still (stopped, or its machine asleep) does not count.

    Args:
        timeout_s: seconds that a step may take; None or 0: no limit, and no thread.
        kill_s: end the process, with exit code 1 and after showing all stacks, when this thread has
            not run for so long: then something holds the interpreter and `on_hang` cannot be
            called. None: do not.
    """

    def __init__(
        self,
        timeout_s: float | None,
        on_hang: Callable[[float], None],
        *,
        kill_s: float | None = None,
    ) -> None:
        self.began: float | None = None  # monotonic seconds, while a step runs
        self.timeout_s = timeout_s or 0.0
        self._on_hang = on_hang
        self._kill_s = kill_s
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        if self.timeout_s:
            self._put_off_kill()
            self._thread.start()

    def __enter__(self) -> None:
        self.began = time.monotonic()

    def __exit__(self, *exc: object) -> None:
        self.began = None

    def close(self) -> None:
        """Watch no longer. Safe to call twice."""
        self._closed.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    def _watch(self) -> None:
        look_s = min(self.timeout_s / LOOKS, MOST_S)
        step, ran_s, last = None, 0.0, time.monotonic()
        try:
            while not self._closed.wait(look_s):
                self._put_off_kill()
                began, now = self.began, time.monotonic()
                if began is not None and began == step:
                    ran_s += min(now - last, 2 * look_s)  # more: nothing ran, the step neither
                else:
                    step, ran_s = began, 0.0
                last = now
                if began is not None and ran_s >= self.timeout_s:
                    self._show_stacks()
                    self._on_hang(began)
                    ran_s = 0.0
        finally:
            if self._kill_s is not None:
                faulthandler.cancel_dump_traceback_later()

    def _put_off_kill(self) -> None:
        if self._kill_s is not None:
            faulthandler.dump_traceback_later(self._kill_s, exit=True, file=_STDERR)

    def _show_stacks(self) -> None:
        log.error("a step has not ended within %g s; every thread's stack:", self.timeout_s)
        faulthandler.dump_traceback(file=_STDERR, all_threads=True)


class InterruptingWatchdog:
    """Runs steps of this process, and raises EngineDeadError in the thread of one that hangs.

    At once where that thread runs Python, or is the main one and waits for something that a signal
    interrupts; otherwise when what it is in returns. The stacks are shown in any case.
    """

    def __init__(self, timeout_s: float | None) -> None:
        self.died: EngineDeadError | None = None
        self._watchdog = Watchdog(timeout_s, self._interrupt)
        self._interrupting = threading.Lock()
        self._thread = 0

    def run(self, step: Callable[[], T]) -> T:
        """
        Raises:
            EngineDeadError: this step hung, or one before.
        """
        if self.died is not None:
            raise self.died
        self._thread = threading.get_ident()
        try:
            try:
                self._watchdog.began = time.monotonic()
                return step()
            finally:
                self._watchdog.began = None
                self._settle()
        except (_Interrupted, KeyboardInterrupt):  # of the user's, where nothing died
            self._settle()
            raise

    def close(self) -> None:
        """Watch no longer. Safe to call twice."""
        self._watchdog.close()

    def _settle(self) -> None:
        """An interruption may be on its way, and must not hit what comes after the step."""
        if self.died is None:
            return
        with self._interrupting:
            pass
        if self.died is not None:
            time.sleep(ARRIVAL_S)
            raise self.died

    def _interrupt(self, began: float) -> None:
        """In the watchdog's thread. The order matters: the step may end at any of these lines."""
        with self._interrupting:
            if self.died is not None:
                return
            self.died = hang_error(self._watchdog.timeout_s)
            if self._watchdog.began != began:
                self.died = None  # it ended in time, after all
                return
            main = self._thread == threading.main_thread().ident
            if main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                # Ends a sleep, too, and the wait for a lock.
                signal.pthread_kill(self._thread, signal.SIGINT)
            else:
                _raise_in(self._thread)


class _Interrupted(BaseException):
    """Passes by those who catch every Exception."""


def _raise_in(thread: int) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread), ctypes.py_object(_Interrupted)
    )
