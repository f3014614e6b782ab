"""`engine chat` on a terminal: a real one, with a model that never stops talking."""

import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

SCRIPT = """
import fcntl, signal, sys, termios, time
from types import SimpleNamespace

import engine.llm
from engine.cli import main


class LLM:
    tokenizer = SimpleNamespace(chat_template="", chat=lambda messages: [len(messages)])

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        print("closed", file=sys.stderr)

    def stream(self, prompt, params):
        try:
            while True:
                yield SimpleNamespace(text=f"word{prompt[0]} ")
                time.sleep(0.02)
        finally:
            print("aborted", file=sys.stderr)


fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # ctrl-C of this terminal is for us
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in background
engine.llm.LLM = LLM
sys.exit(main(["chat"]))
"""
CTRL_C, CTRL_D = "\x03", "\x04"


class Terminal:
    """Types, and waits for what is shown."""

    def __init__(self) -> None:
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            env={**os.environ, "TERM": "dumb"},
        )
        os.close(theirs)
        self._unread = ""

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def expect(self, text: str, timeout_s: float = 30.0) -> None:
        """Read until `text` has been shown; what comes after it is left for the next call."""
        deadline = time.monotonic() + timeout_s
        while text not in self._unread:
            ready, _, _ = select.select([self._ours], [], [], deadline - time.monotonic())
            assert ready, f"{text!r} was not shown, only {self._unread!r}"
            self._unread += os.read(self._ours, 4096).decode()
        self._unread = self._unread.partition(text)[2]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    terminal = Terminal()
    yield terminal
    terminal.close()


def test_ctrl_c_stops_a_reply_and_the_next_message_is_answered(terminal: Terminal) -> None:
    terminal.expect("/quit")
    terminal.expect("> ")
    terminal.type("hello\n")
    terminal.expect("word1 word1")
    terminal.type(CTRL_C)
    terminal.expect("(stopped)")
    terminal.expect("aborted")
    terminal.expect("> ")
    terminal.type("again\n")
    terminal.expect("word3 word3")
    terminal.type(CTRL_C)
    terminal.expect("> ")
    terminal.type("/quit\n")
    terminal.expect("closed")
    assert terminal.process.wait(timeout=30) == 0


def test_ctrl_c_at_the_prompt_empties_the_line_and_ctrl_d_ends(terminal: Terminal) -> None:
    terminal.expect("> ")
    terminal.type("half a li")
    terminal.expect("half a li")
    time.sleep(0.2)  # while it handles a key, Python's line editor does not notice a signal
    terminal.type(CTRL_C)
    terminal.expect("> ")
    terminal.type(CTRL_D)
    terminal.expect("closed")
    assert terminal.process.wait(timeout=30) == 0
