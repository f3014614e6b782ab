"""`engine chat`: talk to a model in the terminal."""

import argparse
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event
from typing import TYPE_CHECKING

from engine.cli import options
from engine.errors import ModelError, RequestError

if TYPE_CHECKING:
    from engine.llm import LLM
    from engine.params import SamplingParams
    from engine.text import Tokenizer

HELP = "/reset begins anew, /quit (or end of input) ends, ctrl-C stops a reply"
NAME = "chat"
SUMMARY = "talk to a model"
DESCRIPTION = (
    f"Talks to a model: one line, one message. {HELP}. When stdin is not a"
    " terminal, every line of it is answered in turn."
)


def add_options(parser: argparse.ArgumentParser) -> None:
    options.add_model(parser)
    parser.add_argument("--system", metavar="TEXT", help="system message to begin with")
    options.add_sampling(parser)
    options.add_engine(parser)


def run(arguments: argparse.Namespace) -> int:
    params = options.sampling_params(arguments)
    from engine.llm import LLM

    with LLM(**options.engine_settings(arguments)) as llm:
        tokenizer = llm.tokenizer
        if tokenizer is None or tokenizer.chat_template is None:
            lacks = "tokenizer" if tokenizer is None else "chat template"
            raise ModelError(f"this model has no {lacks}, so one cannot chat with it")
        Conversation(llm, tokenizer, params, arguments.system).run()
    return 0


class Conversation:
    """Messages so far, and the loop that adds to them."""

    def __init__(
        self, llm: "LLM", tokenizer: "Tokenizer", params: "SamplingParams", system: str | None
    ) -> None:
        self._llm = llm
        self._tokenizer = tokenizer
        self._params = params
        self._system = system
        self._messages: list[dict[str, str]] = []
        self._reset()

    def run(self) -> None:
        """Until /quit or the end of input."""
        for line in _lines():
            match line.strip():
                case "":
                    continue
                case "/quit" | "/exit":
                    return
                case "/reset":
                    self._reset()
                    print("(a new conversation)", file=sys.stderr)
                case command if command.startswith("/"):
                    print(f"(no command {command!r}: {HELP})", file=sys.stderr)
                case text:
                    self._say(text)

    def _reset(self) -> None:
        self._messages = [{"role": "system", "content": self._system}] if self._system else []

    def _say(self, text: str) -> None:
        """Print the reply as it comes; one that was stopped stays in the conversation so far."""
        asked = {"role": "user", "content": text}
        try:
            reply = self._stream([*self._messages, asked])
        except RequestError as error:
            print(f"(not sent: {error}; /reset begins anew)", file=sys.stderr)
            return
        self._messages += [asked, {"role": "assistant", "content": reply}]

    def _stream(self, messages: list[dict[str, str]]) -> str:
        prompt = self._tokenizer.chat(messages)
        parts: list[str] = []
        with _interrupts() as stopped:
            for piece in self._llm.stream(prompt, self._params):
                parts.append(piece.text)
                print(piece.text, end="", flush=True)
                if stopped.is_set():
                    print(" (stopped)", end="", file=sys.stderr)
                    break  # the iterator goes, and the request with it
        print()
        return "".join(parts)


def _lines() -> Iterator[str]:
    """Lines of stdin; on a terminal with a prompt and line editing."""
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    import readline

    readline.set_auto_history(True)
    print(f"({HELP})", file=sys.stderr)
    while True:
        try:
            yield input("> ")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:  # empties the line that was begun
            print()


@contextmanager
def _interrupts() -> Iterator[Event]:
    """Set by the first ctrl-C, which lets the step that runs finish; the second one raises."""
    stopped = Event()
    before = signal.getsignal(signal.SIGINT)

    def stop(number: int, frame: object) -> None:
        stopped.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, stop)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)
