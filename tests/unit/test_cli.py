import argparse
import dataclasses
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import engine.llm
import engine.server
from engine import __version__
from engine.cli import COMMANDS, main, make_parser
from engine.cli.options import ENGINE, SERVER, engine_settings, sampling_params, server_options
from engine.config import EngineConfig
from engine.errors import PluginError
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
