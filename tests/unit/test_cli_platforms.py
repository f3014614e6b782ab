"""`engine platforms`, beside plugin packages that pip installed."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ENGINE = str(Path(sys.executable).parent / "engine")


def environment(folder: Path, only: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(folder), "ENGINE_PLUGINS": only, "COLUMNS": "200"}


def platforms(folder: Path, *only: str) -> tuple[int, dict[str, Any]]:
    """The exit status, and the rows by name."""
    done = subprocess.run(
        [ENGINE, "platforms", "--json"],
        env=environment(folder, ",".join(only)),
        capture_output=True,
        text=True,
    )
    report = json.loads(done.stdout)
    return done.returncode, report | {row["name"]: row for row in report["platforms"]}


def test_platforms_that_compute_rightly_pass_on_either_seam(plugin_folder: Path) -> None:
    status, report = platforms(plugin_folder, "wide", "narrow")
    assert status == 0
    assert {name: report[name]["result"] for name in ("wide", "narrow")} == {
        "wide": "PASS",
        "narrow": "PASS",
    }
    assert "0.5 of 1.0 GiB free" in report["wide"]["detail"]
    assert "paged attention is right" in report["wide"]["detail"]
    assert "its runner computed a token" in report["narrow"]["detail"]
    assert report["auto"] == "narrow"  # the first by name among equals


def test_an_unavailable_platform_gives_its_reason_and_is_no_failure(plugin_folder: Path) -> None:
    status, report = platforms(plugin_folder, "absent")
    assert status == 0
    assert report["absent"]["result"] == "unavailable"
    assert report["absent"]["detail"] == "plug one in"
    assert "no device is available" in report["auto"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("crash", "a_driver_that_nobody_has"),
        ("liar", "OSError: bus"),
        ("frail", "OSError: gone"),
        ("twin", "more than one package"),
        ("new", "upgrade engine"),
        ("misspelt", "engine_platfroms"),
        ("wide-wrong", "paged attention in float32 is wrong: off by"),
        ("narrow-silent", "a slice that samples brought no token"),
        ("boastful", "bytes free"),
        ("crashes", "its process ended with status 9"),
    ],
)
def test_a_broken_platform_fails_with_its_error(
    plugin_folder: Path, name: str, reason: str
) -> None:
    status, report = platforms(plugin_folder, name)
    assert status == 1
    assert report[name]["result"] == "FAIL"
    assert reason in report[name]["detail"]


def test_one_broken_platform_does_not_hide_the_others(plugin_folder: Path) -> None:
    status, report = platforms(plugin_folder, "crash", "narrow", "absent")
    assert status == 1
    results = [(row["name"], row["result"]) for row in report["platforms"]]
    assert results == [("absent", "unavailable"), ("crash", "FAIL"), ("narrow", "PASS")]
    assert "--device narrow" in report["auto"]


def test_a_platform_that_hangs_is_reported(plugin_folder: Path) -> None:
    code = (
        "from engine.cli.platforms import examine; from engine.plugins import PluginManager;"
        "print(examine(PluginManager().find('hangs'), timeout_s=1.0))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(plugin_folder, "hangs"),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "result='FAIL', detail='hung: no result within 1 s'" in done.stdout


def test_without_a_terminal_it_prints_plain_lines(plugin_folder: Path) -> None:
    done = subprocess.run(
        [ENGINE, "platforms"],
        env=environment(plugin_folder, "absent,narrow"),
        capture_output=True,
        text=True,
        check=True,
    )
    absent, narrow, auto = done.stdout.splitlines()
    assert absent.split(maxsplit=2) == ["unavailable", "absent", "plug one in (absent 1.5)"]
    assert narrow.startswith("PASS         narrow       a [pretended] device; 0.5 of 1.0 GiB free")
    assert auto == "--device auto: narrow"


def test_on_a_terminal_it_draws_a_table(plugin_folder: Path) -> None:
    ours, theirs = pty.openpty()
    subprocess.run(
        [ENGINE, "platforms"],
        env=environment(plugin_folder, "absent,narrow") | {"TERM": "xterm"},
        stdout=theirs,
        check=True,
    )
    os.close(theirs)
    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert "│" in shown
    assert "[pretended]" in shown
