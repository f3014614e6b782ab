"""A platform's own code is certified without its device, through a stand-in."""

import importlib.util
import json
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[3] / "tools" / "certify_without_device.py"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("certify_without_device", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(*arguments):
    return subprocess.run([sys.executable, TOOL, *arguments], capture_output=True, text=True)


def test_a_stand_in_is_examined_like_an_installed_platform(tmp_path):
    file = tmp_path / "certificate.json"
    found = run("cuda_on_cpu", "--level", "memory", "--json", str(file))
    assert found.returncode == 0, found.stderr
    certificate = json.loads(file.read_text())
    assert certificate["passed"]
    assert certificate["platform"] == "cuda_on_cpu"
    assert {one["level"] for one in certificate["cases"]} == {"memory"}


def test_a_name_that_is_no_stand_in_is_refused_with_those_there_are():
    found = run("cuda")
    assert found.returncode == 2
    assert "no stand-in 'cuda', only cuda_on_cpu, rocm_on_cpu," in found.stderr
    assert "engine certify --device cuda" in found.stderr


def test_the_stand_ins_offer_a_platform_of_their_name(tool, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tool.SUPPORT)
    for name, stand_in in tool.read_stand_ins().items():
        folder = tmp_path / name
        folder.mkdir()
        tool.install(folder, name, stand_in["module"])
        [entry] = [one for found in distributions(path=[folder]) for one in found.entry_points]
        assert (entry.group, entry.name) == ("engine.platforms", name)
        assert name in {one.name for one in entry.load().engine_platforms()}


def test_children_find_the_stand_in_and_keep_no_programs(tool, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/before")
    found = tool.environment(tmp_path, {"environment": {"SWITCH": "1"}})
    assert found["PYTHONPATH"].split(":") == [str(tmp_path), str(tool.SUPPORT), "/before"]
    assert Path(found["ENGINE_PROGRAM_CACHE"]).parent == tmp_path
    assert found["SWITCH"] == "1"
