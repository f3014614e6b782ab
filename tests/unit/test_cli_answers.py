"""The commands that ask a model: generate, chat and eval, with one that answers from a list."""

import dataclasses
import io
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import engine.llm
from engine.cli import main
from engine.errors import ModelError, RequestError
from engine.params import SamplingParams


@dataclasses.dataclass
class Text:
    text: str


@dataclasses.dataclass
class Output:
    prompt: str
    outputs: list[Text]


class FakeTokenizer:
    chat_template: str | None = "{{ messages }}"

    def chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        if messages[-1]["content"] == "refuse":
            raise RequestError("too long")
        FakeLLM.asked.append([(message["role"], message["content"]) for message in messages])
        return [len(messages)]


class FakeLLM:
    """Answers with its replies in turn, in pieces of one word."""

    asked: list[Any]
    replies: list[str]
    settings: dict[str, Any]
    closed: int
    tokenizer: FakeTokenizer | None = FakeTokenizer()

    def __init__(self, **settings: Any) -> None:
        FakeLLM.settings = settings

    def __enter__(self) -> "FakeLLM":
        return self

    def __exit__(self, *exc: object) -> None:
        FakeLLM.closed += 1

    def stream(self, prompt: Any, params: SamplingParams) -> Iterator[Text]:
        self.asked.append(prompt)
        for word in self.replies.pop(0).split(" "):
            if word == "^C":
                os.kill(os.getpid(), signal.SIGINT)
            else:
                yield Text(word + " ")

    def generate(self, prompts: list[str], params: SamplingParams) -> list[Output]:
        self.asked.append(prompts)
        return [Output(prompt, [Text(self.replies.pop(0))]) for prompt in prompts]

    def chat(self, messages: Any, params: SamplingParams, *, tools: Any = None) -> list[Output]:
        from engine.embedded import world

        answers = {repr(list(q.messages)): q.answer for q in world.questions(8, 5, "held_out")}
        return [Output("", [Text(answers[repr(chat)])]) for chat in messages]


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch) -> type[FakeLLM]:
    FakeLLM.asked, FakeLLM.replies, FakeLLM.closed = [], [], 0
    monkeypatch.setattr(engine.llm, "LLM", FakeLLM)
    return FakeLLM


Lines = pytest.CaptureFixture[str]


def test_one_prompt_is_answered_as_its_text_comes(llm: type[FakeLLM], capsys: Lines) -> None:
    llm.replies = ["there was a king"]
    assert main(["generate", "here", "Once upon a time", "--device", "cpu"]) == 0
    assert capsys.readouterr().out == "there was a king \n"
    assert llm.settings == {"model": "here", "device": "cpu"}
    assert llm.asked == ["Once upon a time"]
    assert llm.closed == 1


def test_a_single_word_is_the_prompt_and_the_model_is_the_default(
    llm: type[FakeLLM], capsys: Lines
) -> None:
    llm.replies = ["b"]
    assert main(["generate", "a"]) == 0
    assert (llm.settings, llm.asked) == ({}, ["a"])


def test_several_prompts_are_computed_together(llm: type[FakeLLM], capsys: Lines) -> None:
    llm.replies = ["1", "2"]
    assert main(["generate", "here", "a", "b"]) == 0
    assert capsys.readouterr().out == "── a\n1\n── b\n2\n"
    assert llm.asked == [["a", "b"]]


def test_a_dash_reads_the_prompt_from_stdin(
    llm: type[FakeLLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    llm.replies = ["x"]
    type_in(monkeypatch, "a long\nprompt")
    assert main(["generate", "-"]) == 0
    assert llm.asked == ["a long\nprompt"]


def type_in(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


@pytest.fixture
def chat(
    llm: type[FakeLLM], monkeypatch: pytest.MonkeyPatch, capsys: Lines
) -> Callable[..., tuple[str, str, list[Any]]]:
    """Chat with the replies given; returns what was printed and what the model was asked."""

    def chat(text: str, replies: list[str], *words: str) -> tuple[str, str, list[Any]]:
        llm.replies = replies
        type_in(monkeypatch, text)
        assert main(["chat", *words]) == 0
        shown = capsys.readouterr()
        return shown.out, shown.err, [one for one in llm.asked if isinstance(one[0], tuple)]

    return chat


def test_a_chat_remembers_what_was_said(chat: Any) -> None:
    out, _, asked = chat("hi\n\nand you?\n", ["hello", "fine"], "--system", "Be brief.")
    assert out == "hello \nfine \n"
    assert asked[-1] == [
        ("system", "Be brief."),
        ("user", "hi"),
        ("assistant", "hello "),
        ("user", "and you?"),
    ]


def test_reset_forgets_all_but_the_system_message(chat: Any) -> None:
    _, _, asked = chat("hi\n/reset\nho\n", ["a", "b"], "--system", "S")
    assert asked[-1] == [("system", "S"), ("user", "ho")]


def test_quit_ends_the_chat_before_the_input_does(chat: Any) -> None:
    out, _, _ = chat("hi\n/quit\nho\n", ["a"])
    assert out == "a \n"


def test_an_unknown_command_is_not_sent_to_the_model(chat: Any) -> None:
    out, err, asked = chat("/rest\n", [])
    assert (out, asked) == ("", [])
    assert "no command '/rest'" in err


def test_a_message_that_is_refused_leaves_the_conversation_as_it_was(chat: Any) -> None:
    _, err, asked = chat("refuse\nhi\n", ["a"])
    assert "not sent: too long" in err
    assert asked[-1] == [("user", "hi")]


def test_an_interrupt_stops_the_reply_and_the_chat_goes_on(chat: Any) -> None:
    before = signal.getsignal(signal.SIGINT)
    out, err, asked = chat("hi\nho\n", ["one ^C two three", "four"])
    assert out == "one two \nfour \n"
    assert "(stopped)" in err
    assert asked[-1][1] == ("assistant", "one two ")
    assert signal.getsignal(signal.SIGINT) is before


class Untaught(FakeTokenizer):
    chat_template = None


@pytest.mark.parametrize(
    ("tokenizer", "lacks"), [(None, "tokenizer"), (Untaught(), "chat template")]
)
def test_a_model_that_lacks_what_a_chat_needs_says_so_at_once(
    llm: type[FakeLLM], monkeypatch: pytest.MonkeyPatch, capsys: Lines, tokenizer: Any, lacks: str
) -> None:
    monkeypatch.setattr(llm, "tokenizer", tokenizer)
    type_in(monkeypatch, "hi\n")
    assert main(["chat"]) == 2
    assert capsys.readouterr().err.startswith(f"error: this model has no {lacks}")


def test_an_error_of_the_model_ends_the_command(
    llm: type[FakeLLM], monkeypatch: pytest.MonkeyPatch, capsys: Lines
) -> None:
    def broken(self: FakeLLM, **settings: Any) -> None:
        raise ModelError("no config.json in here")

    monkeypatch.setattr(llm, "__init__", broken)
    assert main(["generate", "hi"]) == 2
    assert capsys.readouterr().err == "error: no config.json in here\n"


def test_eval_prints_a_table_and_writes_a_report(
    llm: type[FakeLLM], tmp_path: Path, capsys: Lines
) -> None:
    report = tmp_path / "report.json"
    words = ["eval", "here", "--count", "8", "--seed", "5", "--json", str(report)]
    assert main(words) == 0
    assert llm.settings == {"model": "here"}
    assert capsys.readouterr().out.splitlines()[-1].split() == ["all", "8", "of", "8", "100.00%"]
    assert json.loads(report.read_text())["scores"]["all"] == {"right": 8, "asked": 8, "share": 1}


def test_eval_asks_at_least_one_question(capsys: Lines) -> None:
    assert main(["eval", "--count", "0"]) == 2
    assert "--count must be at least 1" in capsys.readouterr().err
