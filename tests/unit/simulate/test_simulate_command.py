import json
import sys
from pathlib import Path

import pytest

from engine.cli import main

LINES = [
    "arrival_s,input_tokens,output_tokens",
    *(f"{i / 4},{20 + i},{3 + i % 5}" for i in range(24)),
]


@pytest.fixture
def trace(tmp_path: Path) -> str:
    path = tmp_path / "trace.csv"
    path.write_text("\n".join(LINES) + "\n")
    return str(path)


def test_a_trace_is_replayed_reported_and_drawn(
    trace: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report, picture = tmp_path / "report.json", tmp_path / "picture.png"
    words = ["simulate", "--device", "cpu", "--trace", trace, "--replicas", "3", "--workers", "1"]
    words += ["--requests", "50", "--rate", "200", "--slo-ttft", "1", "--price", "0.5"]
    assert main([*words, "--json", str(report), "--plot", str(picture)]) == 0
    printed = capsys.readouterr().out
    assert "50 of 50 completed" in printed
    assert "every time above is predicted; " in printed
    written = json.loads(report.read_text())
    assert written["completed"] == 50
    assert written["goodput_share"] is not None
    assert written["cost"] > 0
    assert set(written["ttft_s"]) == {"p50", "p90", "p99"}
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--replicas", "0"], "--replicas must be at least 1, got 0"),
        (["--rate", "-1"], "--rate must be more than 0, got -1.0"),
        (["--slo-ttft", "nan"], "--slo-ttft must be more than 0, got nan"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(
    words: list[str], said: str, trace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", "--device", "cpu", "--trace", trace, *words]) == 2
    assert said in capsys.readouterr().err


def test_a_wrong_trace_is_told_before_anything_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"{LINES[0]}\n0,1,x\n")
    assert main(["simulate", "--device", "no-such-device", "--trace", str(path)]) == 2
    assert "line 2, column output_tokens" in capsys.readouterr().err


def test_a_plot_without_matplotlib_says_how_to_get_it(
    trace: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    words = ["simulate", "--device", "cpu", "--trace", trace, "--plot", "x.png"]
    assert main(words) == 2
    assert "pip install matplotlib" in capsys.readouterr().err
