"""`benchmarks/gpu.py` at its smallest sizes, on the processor."""

import json
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_a_rehearsal_checks_and_measures_and_writes_what_it_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import gpu

    monkeypatch.setattr(gpu.signal, "signal", lambda number, handler: None)  # it is pytest's
    arguments = ["--rehearse", "--only", "machine", "--only", "ceilings", "--only", "ours"]
    files = ["--json", str(tmp_path / "out.json"), "--logs", str(tmp_path / "logs")]
    status = gpu.main([*arguments, *files, "--models", str(tmp_path / "models")])
    said = capsys.readouterr().out
    assert status == 0, said
    assert "PASS: 1 of 1 checks hold" in said
    told = json.loads((tmp_path / "out.json").read_text())
    assert told["facts"]["platform"] == "cpu, cpu:0"
    names = {line["name"] for line in told["lines"]}
    assert {"tiny-qwen3 bf16, one stream, a token", "tiny-qwen3 bf16, bench.py"} <= names
    assert all(line["ours"] > 0 for line in told["lines"])
    assert not told["not_run"]


def test_whole_models_agree_with_transformers_and_another_model_does_not(tmp_path: Path) -> None:
    from accelerator import agreement
    from accelerator.job import Job
    from accelerator.models import make

    job = Job(part="", device="cpu", engine_device="cpu", full=False, models=tmp_path)
    found = list(agreement.compare(job, "tiny-qwen3", "float32"))
    assert len(found) == 2
    assert all(check.passed for check in found), found
    reference = agreement.Reference(make("tiny-llama", tmp_path, "cpu"), "cpu")
    choice, report, same = reference.judge([1, 2, 3], [4, 5, 6], [0.0, 0.0, float("nan")])
    assert choice > 0.1
    assert report == float("inf")
    assert same < 3
