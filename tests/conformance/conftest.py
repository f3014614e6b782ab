"""The Acme NPU's plugin from its source folder, as a platform that is right, and a judge."""

import sys
from pathlib import Path

import pytest

from engine.testing.checks import Status, Subject, cases, run, tiny_model

ROOT = Path(__file__).parents[2]
ACME = ROOT / "plugins" / "acme_npu"


@pytest.fixture
def acme(monkeypatch):
    """Its package, importable here and in processes started from here; forgotten afterwards."""
    monkeypatch.syspath_prepend(str(ACME))
    monkeypatch.setenv("PYTHONPATH", str(ACME))
    import engine_acme_npu
    import engine_acme_npu.platform

    yield engine_acme_npu
    for name in [name for name in sys.modules if name.startswith("engine_acme_npu")]:
        del sys.modules[name]


@pytest.fixture
def good(acme):
    [spec] = acme.engine_platforms()
    return spec


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return tiny_model.make(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture
def judge(model):
    """The result of one case for one spec."""
    subjects = []

    def judge(case, spec, **options):
        subjects.append(Subject(spec, model, **options))
        [found] = [one for one in cases(case.partition("/")[0]) if one.id == case]
        return run(found, subjects[-1])

    yield judge
    for subject in subjects:
        subject.close()


@pytest.fixture
def assert_found(judge, good):
    """The case passes for the good platform, and fails for the broken one, for this reason."""

    def assert_found(case, broken, reason, good=good):
        before = judge(case, good)
        assert before.status is Status.PASSED, before.reason
        after = judge(case, broken)
        assert after.status is Status.FAILED
        assert reason in after.reason

    return assert_found
