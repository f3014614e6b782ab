import argparse
import dataclasses
import io
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import engine.llm
import engine.server
from engine import __version__
from engine.cli import COMMANDS, main, make_parser
from engine.cli.options import ENGINE, SERVER, engine_settings, sampling_params, server_options
from engine.config import EngineConfig
from engine.errors import ModelError, PluginError, RequestError
from engine.params import SamplingParams
from engine.server.options import ServerOptions

ENGINE_COMMAND = str(Path(sys.executable).parent / "engine")


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ENGINE_COMMAND, *words], capture_output=True, text=True, env={**os.environ, **environment}
    )


def parsed(*words: str) -> argparse.Namespace:
    return make_parser(words).parse_args(words)


# -- starting


def test_version() -> None:
    assert run("--version").stdout == f"engine {__version__}\n"


def test_help_names_every_command_without_importing_a_driver() -> None:
    done = run("--help", PYTHONPROFILEIMPORTTIME="1")
    assert {module.NAME for module in COMMANDS} <= set(done.stdout.split())
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "engine.cli" in imported
    assert imported & {"torch", "numpy", "transformers", "fastapi"} == set()


def test_help_takes_less_than_half_a_second_of_processor_time() -> None:
    """Processor time: what else runs on the machine does not count."""
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run("--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 0.5, seconds


def test_an_unknown_command_lists_the_commands() -> None:
    done = run("sevre")
    assert done.returncode == 2
    assert "serve" in done.stderr


# -- options


@pytest.mark.parametrize(("owner", "table"), [(EngineConfig, ENGINE), (ServerOptions, SERVER)])
def test_every_setting_has_an_option_and_an_explanation(owner: type, table: Any) -> None:
    assert list(table) == [field.name for field in dataclasses.fields(owner)]
    assert all(words.help for words in table.values())


@pytest.mark.parametrize("command", [module.NAME for module in COMMANDS])
def test_every_commands_help_can_be_shown(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert "--debug" in capsys.readouterr().out


def test_only_what_the_user_gave_becomes_a_setting() -> None:
    assert engine_settings(parsed("serve")) == {}
    assert engine_settings(parsed("serve", "--max-requests", "256")) == {"max_requests": 256}


def test_options_are_read_as_the_type_of_their_setting() -> None:
    words = "serve here --block-size 32 --memory-fraction 0.5 --no-prefix-caching --dtype float32"
    assert engine_settings(parsed(*words.split())) == {
        "model": "here",
        "block_size": 32,
        "memory_fraction": 0.5,
        "prefix_caching": False,
        "dtype": "float32",
    }


def test_server_options_that_may_be_repeated_are_collected() -> None:
    words = "serve --api-key a --api-key b --served-model-name x --linger 0.5 --port 0"
    assert server_options(parsed(*words.split())) == ServerOptions(
        api_keys=("a", "b"), served_model_names=("x",), linger_s=0.5, port=0
    )


def test_the_command_line_is_greedy_unless_told_otherwise() -> None:
    assert sampling_params(parsed("generate", "hi")) == SamplingParams(
        temperature=0.0, max_tokens=None
    )
    words = "generate hi --temperature 0.7 --top-k 5 --stop a --stop b --max-tokens 3"
    assert sampling_params(parsed(*words.split())) == SamplingParams(
        temperature=0.7, top_k=5, stop=("a", "b"), max_tokens=3
    )


# -- errors


def test_an_error_raised_on_purpose_is_one_clean_line() -> None:
    done = run("generate", "--temperature", "-1", "hi")
    assert done.returncode == 2
    assert done.stderr == "error: temperature must be at least 0, got -1.0\n"
    assert done.stdout == ""


def test_debug_shows_where_an_error_comes_from() -> None:
    done = run("generate", "--temperature", "-1", "--debug", "hi")
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert done.stderr.endswith("error: temperature must be at least 0, got -1.0\n")


def test_an_interrupt_ends_with_the_shells_status(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(settings: object, options: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(engine.server, "serve", interrupted)
    assert main(["serve"]) == 130


# -- plugins


def test_a_plugins_command_is_offered_and_run(plugin_folder: Path) -> None:
    environment = {"PYTHONPATH": str(plugin_folder), "ENGINE_PLUGINS": "extras"}
    assert "say hello" in run("--help", **environment).stdout
    assert run("greet", **environment).stdout == "hello\n"


def test_a_broken_plugin_is_warned_about_and_the_command_line_works(plugin_folder: Path) -> None:
    done = run("--version", PYTHONPATH=str(plugin_folder), ENGINE_PLUGINS="")
    assert done.returncode == 0
    assert "RuntimeError: boom; going on without it" in done.stderr


def test_a_plugin_named_by_the_user_that_is_absent_is_an_error() -> None:
    done = run("--version", ENGINE_PLUGINS="gone")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ENGINE_PLUGINS names gone")


def test_a_command_without_a_function_is_its_plugins_fault() -> None:
    from engine.cli import _run

    with pytest.raises(PluginError, match="has set no function `run`"):
        _run(argparse.Namespace())


# -- serve, certify


def test_serve_hands_settings_and_options_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def serve(settings: object, options: object) -> int:
        seen.append((settings, options))
        return 7

    monkeypatch.setattr(engine.server, "serve", serve)
    assert main(["serve", "here", "--device", "cpu", "--port", "1"]) == 7
    assert seen == [({"model": "here", "device": "cpu"}, ServerOptions(port=1))]


def test_certify_hands_everything_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from engine.testing import certify

    seen = []

    def fake(device: str, json_path: str | None, **options: object) -> int:
        seen.append((device, json_path, options))
        return 1

    monkeypatch.setattr(certify, "run", fake)
    assert main(["certify", "--device", "acme", "--json", "x.json"]) == 1
    levels = ["--level", "ops", "--level", "runner"]
    assert main(["certify", *levels, "--perf", "--known-failures", "known.toml"]) == 1
    assert seen == [
        ("acme", "x.json", {"levels": [], "perf": False, "known_path": None}),
        ("auto", None, {"levels": ["ops", "runner"], "perf": True, "known_path": "known.toml"}),
    ]


# -- generate, chat, eval: with a model that answers from a list


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
