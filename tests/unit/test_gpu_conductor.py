"""How `benchmarks/gpu.py` runs its parts: in processes that may die, hang or break the device."""

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


WORKER = """
import json, os, sys, time
job = json.loads(sys.argv[1])
def say(**answer): print(json.dumps(answer), flush=True)
if job["part"] == "refusing":
    say(refused="LookupError: no ceiling")
    sys.exit(1)
names = job["arguments"]["names"]
say(plan=names)
for name in names:
    if name in job["done"]:
        continue
    say(begin=name)
    if name == "dies":
        print("out of luck", file=sys.stderr, flush=True)
        os._exit(7)
    if name == "hangs":
        time.sleep(600)
    if name == "breaks":
        say(end=name, reason="RuntimeError: illegal")
        say(broken="illegal memory access")
        sys.exit(1)
    say(kind="fact", name=name, value=float(len(job["done"])))
    say(end=name, reason=None)
time.sleep(600)  # a thread of a library that does not end
"""


@pytest.fixture
def conductor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    from accelerator import conductor as module
    from accelerator.budget import Budget
    from accelerator.job import Job

    monkeypatch.setattr(module, "PATIENCE_S", 0.2)
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    job = Job(part="", device="cpu", engine_device="cpu", models=tmp_path)
    return module.Conductor(
        job,
        Budget(60),
        tmp_path,
        tell=lambda text: None,
        worker=(sys.executable, str(script)),
    )


def test_a_measure_that_ends_its_process_or_breaks_the_device_takes_no_other_along(
    conductor,  # type: ignore[no-untyped-def]
) -> None:
    from accelerator.conductor import Part

    names = ["one", "dies", "two", "breaks", "three"]
    conductor.run(Part("part", "any", 30, arguments={"names": names}))
    assert conductor.results.facts == {"one": 0.0, "two": 2.0, "three": 4.0}
    assert list(conductor.results.not_run) == ["part, dies", "part, breaks"]
    assert "status 7: out of luck (" in conductor.results.not_run["part, dies"]


def test_parts_that_run_at_the_same_time_are_told_apart(conductor) -> None:  # type: ignore[no-untyped-def]
    from accelerator.conductor import Part

    parts = [Part(name, "any", 20, arguments={"names": [name, "dies"]}) for name in ("a", "b")]
    conductor.run(*parts)
    assert set(conductor.results.facts) == {"a", "b"}
    assert set(conductor.results.not_run) == {"a, dies", "b, dies"}


def test_a_measure_that_hangs_is_ended_with_its_part(conductor) -> None:  # type: ignore[no-untyped-def]
    from accelerator.conductor import Part

    names = ["one", "hangs", "two"]
    conductor.run(Part("part", "any", 1.0, least_s=0.5, arguments={"names": names}))
    assert list(conductor.results.facts) == ["one"]
    assert conductor.results.not_run == {
        "part, hangs": "ended after 1 s",
        "part, two": "the part's time was over",
    }
    assert conductor.results.seconds["part"] < 10


def test_a_part_that_cannot_begin_or_has_no_time_says_so(conductor) -> None:  # type: ignore[no-untyped-def]
    from accelerator.conductor import Part

    conductor.run(Part("first", "refusing", 5, least_s=1))
    conductor.run(Part("second", "any", 100, least_s=90, arguments={"names": ["one"]}))
    assert conductor.results.not_run["first"] == "LookupError: no ceiling"
    assert "were left of the budget" in conductor.results.not_run["second"]


def test_a_worker_goes_on_behind_a_measure_that_raises() -> None:
    from accelerator.job import Job, Measure
    from accelerator.records import Fact
    from accelerator.worker import run

    def broken():  # type: ignore[no-untyped-def]
        yield Fact("before", 1.0)
        raise ValueError("no such\nthing")

    said: list[object] = []
    job = Job(part="", device="cpu", engine_device="cpu")
    assert run(Measure("odd", broken), job, said.append)
    assert said == [
        {"begin": "odd"},
        {"kind": "fact", "name": "before", "value": 1.0},
        {"end": "odd", "reason": "ValueError: no such thing"},
    ]
