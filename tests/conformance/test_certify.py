"""`engine certify` ends with a certificate whatever a platform does, also one that crashes."""

import json
import os
from importlib.metadata import distributions
from pathlib import Path

import pytest

from engine import cli
from engine.errors import ConfigError, EngineError, PluginError
from engine.testing import certificate, certify
from engine.testing.apart import Examined, Request, examine_apart
from engine.testing.checks import LEVELS, Result, Status

ACME = Path(__file__).parents[2] / "plugins" / "acme_npu"

#: A plugin that is the Acme NPU, but for what its memory does when it is asked the first time.
FRAIL = """
import os, signal, time
from pathlib import Path
from engine.platform import Availability, PlatformSpec, hookimpl

MET = Path(__file__).with_suffix(".met")


@hookimpl
def engine_platforms():
    return [PlatformSpec(name="frail", api=(1, 2), probe=probe, create=create)]


def probe():
    return Availability(1, "a device that breaks once")


def create(config, rank):
    from engine_acme_npu.platform import AcmePlatform

    class Frail(AcmePlatform):
        name = "frail"

        def memory(self):
            times = len(MET.read_text()) if MET.exists() else 0
            MET.write_text("x" * (times + 1))
            if times == 0:
                os.kill(os.getpid(), signal.SIGABRT)
            if times == 1:
                time.sleep(3600)
            return super().memory()

    return Frail(config, rank)
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Puts a plugin of one module where Python finds it, here and in other processes."""

    def install(name, source):
        (tmp_path / f"engine_{name}.py").write_text(source)
        info = tmp_path / f"engine_{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: engine-{name}\nVersion: 1.0\n"
        )
        (info / "entry_points.txt").write_text(f"[engine.platforms]\n{name} = engine_{name}\n")
        (info / "top_level.txt").write_text(f"engine_{name}\n")

    for path in (ACME, tmp_path):
        monkeypatch.syspath_prepend(str(path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ACME)]))
    return install


def test_a_case_that_crashes_and_one_that_hangs_are_failures_and_the_rest_goes_on(install):
    install("frail", FRAIL)
    examined = examine_apart(Request("frail", ("memory",), most_s=6.0))
    by_id = {one.id: one for one in examined.results}
    assert len(by_id) == 6
    assert by_id["memory/snapshot-adds-up"].reason == "the process ended by SIGABRT"
    assert by_id["memory/snapshot-is-quick"].reason == "it did not end within 6 s"
    others = [one for one in list(by_id.values())[2:] if one.status is Status.FAILED]
    assert not others
    assert examined.capabilities is not None


def test_a_platform_that_cannot_be_made_is_a_failure_that_says_why(install):
    source = FRAIL.replace(
        "from engine_acme_npu.platform", "raise OSError('no such bus')\n    from x"
    )
    install("frail", source)
    [result] = examine_apart(Request("frail", ("memory",))).results
    assert result.id == "discovery/is-made"
    assert "OSError: no such bus" in result.reason


def test_a_known_failure_is_no_failure_and_one_that_passes_is(install, tmp_path, capsys):
    install("frail", FRAIL.replace("if times ==", "if False and times =="))
    known = tmp_path / "known.toml"
    known.write_text(
        '"discovery/speaks-this-contract" = "the vendor is late"\n'
        '"discovery/imports-no-driver" = "it needs one"\n'
    )
    path = tmp_path / "certificate.json"
    source = tmp_path / "engine_frail.py"
    source.write_text(source.read_text().replace("import os,", "import torch, os,"))
    arguments = ["--device", "frail", "--level", "discovery", "--json", str(path)]
    code = cli.main(["certify", *arguments, "--known-failures", str(known)])
    found = json.loads(path.read_text())
    cases = {one["id"]: one for one in found["cases"]}
    assert code == 1
    assert cases["discovery/imports-no-driver"]["status"] == "known"
    assert cases["discovery/imports-no-driver"]["reason"].startswith("it needs one (Assertion")
    assert cases["discovery/speaks-this-contract"]["status"] == "failed"
    assert "take it off the list" in cases["discovery/speaks-this-contract"]["reason"]
    assert found["totals"] == {"passed": 10, "failed": 1, "skipped": 0, "known": 1}
    assert found["versions"]["engine-frail"] == "1.0"
    assert "does NOT conform to contract 1.2" in capsys.readouterr().out


def test_a_known_failure_of_no_case_is_an_error(install):
    install("frail", FRAIL)
    known = {"memory/snapshot-adds-upp": "a slip"}
    with pytest.raises(ConfigError, match="did you mean 'memory/snapshot-adds-up'"):
        examine_apart(Request("frail", ("discovery",), known))


def test_a_plugin_that_breaks_at_its_import_is_an_error_not_a_certificate(install, tmp_path):
    install("frail", "raise RuntimeError('boom')")
    path = tmp_path / "certificate.json"
    with pytest.raises(PluginError, match="boom"):
        certify.run("frail", str(path))
    assert not path.exists()


def test_an_unknown_device_is_an_error_not_a_certificate(tmp_path):
    path = tmp_path / "certificate.json"
    with pytest.raises(ConfigError, match="nonesuch"):
        certify.run("nonesuch", str(path))
    assert not path.exists()


def test_levels_come_in_the_kits_order_and_perf_only_when_asked_for():
    assert certify.choose_levels((), perf=False) == LEVELS
    assert certify.choose_levels((), perf=True) == (*LEVELS, "perf")
    assert certify.choose_levels(("runner", "ops"), perf=False) == ("ops", "runner")
    assert certify.choose_levels(("perf",), perf=False) == ("perf",)
    with pytest.raises(ConfigError, match="unknown level speed; there are discovery, memory"):
        certify.choose_levels(("speed",), perf=False)


def test_one_failure_is_enough_to_be_refused_a_certificate(good):
    passed = Result(id="ops/a", level="ops", status=Status.PASSED, seconds=0.1, error=0.00012345)
    failed = Result(id="ops/b", level="ops", status=Status.FAILED, seconds=0.2, reason="wrong")
    made = certificate.make(good, "acme", Examined([passed, failed]))
    assert not made["passed"]
    assert made["levels"] == [
        {"name": "ops", "passed": 1, "failed": 1, "skipped": 0, "known": 0, "seconds": 0.3}
    ]
    assert certificate.make(good, "acme", Examined([passed]))["passed"]
    assert made["cases"][0] == {
        "id": "ops/a",
        "level": "ops",
        "status": "passed",
        "seconds": 0.1,
        "error": 0.000123,
    }


def test_a_platform_of_which_nothing_was_checked_gets_no_certificate(good):
    assert not certificate.make(good, "acme", Examined([]))["passed"]


def test_a_certificate_is_plain_json_with_a_line_for_each_case(judge, good):
    result = judge("discovery/has-one-name", good)
    made = certificate.make(good, "acme", Examined([result, result]))
    text = certificate.dump(made)
    assert json.loads(text) == json.loads(json.dumps(made))
    assert sum("has-one-name" in line for line in text.splitlines()) == 2
    assert made["format"] == 2
    assert {"python", "engine", "torch", "transformers"} <= set(made["versions"])
    assert made["devices"] == good.probe().detail


def test_an_examination_that_cannot_begin_is_an_error(install):
    install("frail", "import os\nos._exit(3)")
    assert "engine-frail" in {one.metadata["Name"] for one in distributions()}
    with pytest.raises(EngineError, match="could not begin: the process ended with 3"):
        examine_apart(Request("frail", ("memory",)))
