"""The Acme NPU's plugin and the engine, built as wheels and installed, certify themselves."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAIN = "import sys, engine.cli; sys.exit(engine.cli.main())"  # the console script's one line


def call(*command, **options):
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=280, **options
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """An environment in which both come from wheels; what they depend on is this one's."""
    wheels, target = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("installed")
    quiet = ("--quiet", "--no-deps", "--no-index", "--disable-pip-version-check")
    for project in (ROOT, ROOT / "plugins" / "acme_npu"):
        build = (*quiet, "--no-build-isolation", "--wheel-dir", str(wheels), str(project))
        call("-m", "pip", "wheel", *build)
    found = [str(path) for path in wheels.glob("*.whl")]
    assert len(found) == 2
    call("-m", "pip", "install", *quiet, "--target", str(target), *found)
    return {**os.environ, "PYTHONPATH": str(target)}, target


def test_both_are_used_from_their_wheels(installed):
    environment, target = installed
    code = "import engine, engine_acme_npu; print(engine.__file__, engine_acme_npu.__file__)"
    for path in call("-c", code, env=environment, cwd=target).split():
        assert Path(path).is_relative_to(target)


def test_the_installed_plugin_passes_every_check(installed, tmp_path):
    environment, target = installed
    path = tmp_path / "certificate.json"
    command = ("-c", MAIN, "certify", "--device", "acme", "--json", str(path))
    printed = call(*command, env=environment, cwd=target)
    certificate = json.loads(path.read_text())
    assert certificate["passed"], printed
    assert certificate["totals"]["failed"] == 0
    assert certificate["totals"]["passed"] > 100
    assert certificate["versions"]["engine-acme-npu"] == "0.1.0"
    assert certificate["contract"]["plugin"] == [1, 0]
    reasons = {one["reason"] for one in certificate["cases"] if one["status"] == "skipped"}
    assert "declares no overlap" in reasons
    assert "acme conforms to contract 1.0" in printed
