"""Every case runs the engine in a process of its own, beside plugin packages that pip installed."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.platform import API_VERSION

Run = Callable[..., dict[str, Any]]

SCRIPT = """
import json, logging, sys
from engine.errors import EngineError
from engine.plugins import PluginManager

logging.basicConfig(level="WARNING", format="%(message)s")
result = {}
try:
    plugins = PluginManager()
    exec(sys.argv[1])
except EngineError as error:
    result["error"] = [type(error).__name__, str(error), repr(error.__cause__)]
result["loaded"] = [name for name in sys.modules if name.endswith("_module")]
print(json.dumps(result))
"""
SELECT = "result['name'] = plugins.select({!r}).name"


@pytest.fixture
def run(plugin_folder: Path) -> Run:
    """Run statements with `plugins` and `result` at hand; `only` becomes ENGINE_PLUGINS."""

    def run(statements: str, only: str = "") -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, statements],
            env={**os.environ, "PYTHONPATH": str(plugin_folder), "ENGINE_PLUGINS": only},
            capture_output=True,
            text=True,
            check=True,
        )
        return {**json.loads(done.stdout), "warnings": done.stderr}

    return run


def test_a_platform_is_selected_by_name_and_no_other_plugin_is_loaded(run: Run) -> None:
    result = run(SELECT.format("good"))
    assert result["name"] == "good"
    assert result["loaded"] == ["good_module"]


def test_an_unknown_device_lists_what_is_installed_and_guesses(run: Run) -> None:
    kind, message, _ = run(SELECT.format("godo"))["error"]
    assert kind == "ConfigError"
    assert "unknown device 'godo'" in message
    assert "absent" in message
    assert "cpu" in message
    assert "Did you mean 'good'?" in message


def test_a_plugin_that_breaks_at_import_is_named_with_its_package_and_cause(run: Run) -> None:
    kind, message, cause = run(SELECT.format("crash"))["error"]
    assert kind == "PluginError"
    assert "plugin 'crash' (breaks-at-import 1.5) could not be loaded" in message
    assert "a_driver_that_nobody_has" in message
    assert cause.startswith("ModuleNotFoundError")


def test_a_probe_that_raises_is_an_error(run: Run) -> None:
    kind, message, cause = run(SELECT.format("liar"))["error"]
    assert kind == "PluginError"
    assert "platform 'liar' (breaks-at-probe 1.5) broke in probe(): OSError: bus" in message
    assert cause == "OSError('bus')"


def test_an_unavailable_device_gives_the_plugins_reason(run: Run) -> None:
    kind, message, _ = run(SELECT.format("absent"))["error"]
    assert kind == "ConfigError"
    assert message == "device 'absent' is not available: plug one in"


CREATE = """
from engine.config import EngineConfig
platform = plugins.create_platform(plugins.select({!r}), EngineConfig(), rank=1)
result["made"] = [platform.name, platform.rank]
"""


def test_a_good_platform_is_created_for_its_rank(run: Run) -> None:
    assert run(CREATE.format("good"))["made"] == ["good", 1]


@pytest.mark.parametrize(
    ("device", "reason"),
    [("frail", "OSError: gone"), ("odd", "it made 'a string' instead of a Platform")],
)
def test_a_platform_that_breaks_once_it_is_created_is_an_error(
    run: Run, device: str, reason: str
) -> None:
    kind, message, _ = run(CREATE.format(device))["error"]
    assert kind == "PluginError"
    assert f"platform {device!r} said it was available, but could not be created" in message
    assert reason in message


def test_a_name_offered_twice_is_refused_naming_both_packages(run: Run) -> None:
    kind, message, _ = run(SELECT.format("twin"))["error"]
    assert kind == "PluginError"
    assert "first-twin 1.5" in message
    assert "second-twin 1.5" in message
    assert "uninstall all but one" in message


@pytest.mark.parametrize(
    ("device", "theirs", "advice"),
    [
        ("new", f"{API_VERSION[0]}.{API_VERSION[1] + 1}", "upgrade engine, or install an older"),
        ("old", f"{API_VERSION[0] - 1}.9", "install a newer too-old"),
    ],
)
def test_another_contract_version_is_refused_with_advice(
    run: Run, device: str, theirs: str, advice: str
) -> None:
    kind, message, _ = run(SELECT.format(device))["error"]
    assert kind == "PluginError"
    assert f"was written for version {theirs} of the platform contract" in message
    assert f"this engine speaks {API_VERSION[0]}.{API_VERSION[1]}" in message
    assert advice in message


def test_a_contract_version_that_is_no_pair_is_refused(run: Run) -> None:
    kind, message, _ = run(SELECT.format("blank"))["error"]
    assert kind == "PluginError"
    assert "states the contract version '1.0'" in message


def test_a_misspelt_hook_is_named_beside_the_hooks_there_are(run: Run) -> None:
    kind, message, _ = run(SELECT.format("misspelt"))["error"]
    assert kind == "PluginError"
    assert "plugin 'misspelt' (misspelt 1.5)" in message
    assert "engine_platfroms" in message
    assert "engine_add_commands, engine_check_config, engine_platforms" in message


def test_a_misspelt_hook_does_not_disturb_other_plugins(run: Run) -> None:
    statements = f"result['broken'] = bool(plugins.find('misspelt').error)\n{SELECT.format('good')}"
    result = run(statements)
    assert result["broken"]
    assert result["name"] == "good"


def test_a_plugin_must_offer_a_platform_of_its_entry_points_name(run: Run) -> None:
    kind, message, _ = run(SELECT.format("other-name"))["error"]
    assert kind == "PluginError"
    assert "['something-else']" in message
    assert "a PlatformSpec named 'other-name'" in message


def test_auto_takes_the_available_platform_of_highest_priority(run: Run) -> None:
    assert run(SELECT.format("auto"), only="modest,good,absent")["name"] == "good"


def test_auto_tells_every_reason_when_nothing_is_available(run: Run) -> None:
    kind, message, _ = run(SELECT.format("auto"), only="absent")["error"]
    assert kind == "ConfigError"
    assert "no device is available" in message
    assert "absent: plug one in" in message


@pytest.mark.parametrize("broken", ["crash", "liar", "twin", "new", "misspelt"])
def test_auto_never_falls_back_from_a_broken_platform_to_another(run: Run, broken: str) -> None:
    kind, message, _ = run(SELECT.format("auto"), only=f"modest,{broken}")["error"]
    assert kind == "PluginError"
    assert repr(broken) in message
    assert "say --device modest" in message


def test_auto_warns_of_a_broken_platform_that_would_have_come_later(run: Run) -> None:
    result = run(SELECT.format("auto"), only="modest,weak")
    assert result["name"] == "modest"
    assert "platform 'weak' (weak-liar 1.5) broke in probe()" in result["warnings"]


@pytest.mark.parametrize(
    ("device", "reason"),
    [
        ("good:2", "has no index 2: it has 2 devices, 0 to 1 (2 x good)"),
        ("good:1,1", "names an index twice"),
        ("auto:0", "takes no index"),
        ("good:x", "NAME or NAME:INDEX"),
    ],
)
def test_device_indices_are_checked(run: Run, device: str, reason: str) -> None:
    kind, message, _ = run(SELECT.format(device), only="good")["error"]
    assert kind == "ConfigError"
    assert reason in message


def test_indices_that_exist_are_accepted(run: Run) -> None:
    assert run(SELECT.format("good:1,0"))["name"] == "good"


def test_engine_plugins_hides_what_it_does_not_name(run: Run) -> None:
    assert run("result['all'] = [f.name for f in plugins.platforms()]", "good,cpu")["all"] == [
        "cpu",
        "good",
    ]
    _, message, _ = run(SELECT.format("modest"), only="good")["error"]
    assert message == "device 'modest' is installed, but ENGINE_PLUGINS=good leaves it out"


def test_engine_plugins_must_name_what_is_installed(run: Run) -> None:
    kind, message, _ = run("", only="good,gone")["error"]
    assert kind == "PluginError"
    assert "ENGINE_PLUGINS names gone, which is not installed" in message


def test_a_platforms_defaults_and_environment_are_handed_over(run: Run) -> None:
    statements = """
spec = plugins.select("good")
result["defaults"] = plugins.defaults(spec)
result["environment"] = plugins.environment(spec, 3)
"""
    result = run(statements)
    assert result["defaults"] == {"block_size": 32}
    assert result["environment"] == {"RANK_SEEN": "3"}


def test_defaults_that_break_name_the_platform(run: Run) -> None:
    statements = """
import dataclasses
plugins.defaults(dataclasses.replace(plugins.select("good"), defaults=lambda: {}["x"]))
"""
    kind, message, _ = run(statements)["error"]
    assert kind == "PluginError"
    assert message == "platform 'good' broke in defaults(): KeyError: 'x'"


def test_a_broken_general_plugin_is_warned_about_and_the_others_work(run: Run) -> None:
    statements = """
from engine.platform import OpTable
table = OpTable()
plugins.hook.engine_register_ops(table=table, platform=None)
result["shout"] = table.choose("shout")("hey")
result["failed"] = sorted(plugins.failed)
"""
    result = run(statements)
    assert result["shout"] == "HEY"
    assert result["failed"] == ["broken-extras", "wrong-arguments"]
    assert "plugin 'broken-extras' (broken-extras 1.5) could not be loaded" in result["warnings"]
    assert "RuntimeError: boom; going on without it" in result["warnings"]
    assert "engine_check_config" in result["warnings"]
    assert "configuration" in result["warnings"]


def test_a_broken_general_plugin_that_was_asked_for_is_an_error(run: Run) -> None:
    kind, message, _ = run("plugins.load_plugins()", only="broken-extras")["error"]
    assert kind == "PluginError"
    assert "boom" in message


CHECK = """
from engine.config import EngineConfig
plugins.hook.engine_check_config(config=EngineConfig(max_requests={}))
"""


def test_a_plugin_may_refuse_a_configuration(run: Run) -> None:
    assert "error" not in run(CHECK.format(12))
    kind, message, _ = run(CHECK.format(13))["error"]
    assert (kind, message) == ("ConfigError", "13 requests bring bad luck")


def test_a_hook_that_breaks_names_its_plugin(run: Run) -> None:
    kind, message, _ = run(CHECK.format(14))["error"]
    assert kind == "PluginError"
    assert message == "plugin 'extras' broke in engine_check_config: ZeroDivisionError: fourteen"
