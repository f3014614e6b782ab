"""What `engine bench` asks of the engine, and what it makes of the time it takes."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

import engine.llm
from engine import __version__
from engine.cli import bench, main, measuring, random_models
from engine.errors import ConfigError
from engine.facts import EngineFacts, ModelFacts
from engine.text.output import CompletionOutput, RequestOutput

PREFILL_S, STEP_S = 0.001, 0.01  # a prompt's token; a step of everyone
LEDGER = "weights  1 MiB\noperations from acme: linear 7"


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class FakeLLM:
    """Takes a known time for each prompt token and each step, and remembers what it was asked."""

    clock: Clock
    settings: dict[str, Any]
    asked: list[tuple[list[list[int]], list[int]]]
    context = 2048

    def __init__(self, **settings: Any) -> None:
        FakeLLM.settings = settings
        self.clock.now_s += 1.5
        model = ModelFacts(
            name=settings.get("model", "embedded"),
            path="/",
            architecture="A",
            dtype="float32",
            vocab_size=11,
            max_model_len=self.context,
            eos_token_ids=(),
        )
        self.facts = EngineFacts(
            model=model,
            platform="acme",
            device="npu:0",
            dtype="float16",
            max_model_len=self.context,
            block_size=16,
            num_blocks=8,
            prefix_caching=True,
            ledger=LEDGER,
        )

    def __enter__(self) -> "FakeLLM":
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def generate(self, prompts: list[list[int]], params: list[Any]) -> list[RequestOutput]:
        assert all(one.temperature == 0 and one.ignore_eos for one in params)
        outputs = [one.max_tokens for one in params]
        self.asked.append((prompts, outputs))
        self.clock.now_s += PREFILL_S * sum(map(len, prompts)) + STEP_S * max(outputs)
        return [answer(prompt, count) for prompt, count in zip(prompts, outputs, strict=True)]


def answer(prompt: list[int], count: int) -> RequestOutput:
    completion = CompletionOutput(index=0, text="", token_ids=(1,) * count, finish_reason="length")
    return RequestOutput(
        request_id="", prompt=None, prompt_token_ids=tuple(prompt), outputs=(completion,)
    )


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch) -> type[FakeLLM]:
    FakeLLM.clock, FakeLLM.asked, FakeLLM.settings = Clock(), [], {}
    monkeypatch.setattr(engine.llm, "LLM", FakeLLM)
    monkeypatch.setattr(time, "perf_counter", FakeLLM.clock)
    return FakeLLM


def run(tmp_path: Path, *words: str) -> dict[str, Any]:
    file = tmp_path / "report.json"
    assert main(["bench", *words, "--json", str(file)]) == 0
    report: dict[str, Any] = json.loads(file.read_text())
    report["numbers"] = {one["name"]: one["numbers"] for one in report["workloads"]}
    return report


def test_the_numbers_follow_from_the_time_it_took(llm: type[FakeLLM], tmp_path: Path) -> None:
    report = run(tmp_path, "--repeat", "2", "--requests", "3")
    assert report["ready_s"] == pytest.approx(1.5)
    single, mixed = report["numbers"]["single"], report["numbers"]["mixed"]
    assert single["first_token_of_128_s"] == pytest.approx(128 * PREFILL_S + STEP_S)
    assert single["first_token_of_1024_s"] == pytest.approx(1024 * PREFILL_S + STEP_S)
    assert single["decode_tokens_per_s"] == pytest.approx(1 / STEP_S)
    prompts, outputs = next(one for one in llm.asked if len(one[0]) == 3)
    seconds = PREFILL_S * sum(map(len, prompts)) + STEP_S * max(outputs)
    assert mixed["seconds_s"] == pytest.approx(seconds)
    assert mixed["output_tokens_per_s"] == pytest.approx(sum(outputs) / seconds)
    prefix = report["numbers"]["prefix"]
    assert prefix["total_tokens_per_s"] * prefix["seconds_s"] == pytest.approx(3 * 1072)


def test_prompts_differ_and_are_the_same_in_every_run(llm: type[FakeLLM], tmp_path: Path) -> None:
    run(tmp_path)
    first, llm.asked = llm.asked, []
    run(tmp_path)
    assert llm.asked == first
    alone = [tuple(prompts[0]) for prompts, _ in first if len(prompts) == 1]
    assert len(set(alone)) == len(alone)
    together = first[-1][0]
    assert len(together) == 32
    assert len({tuple(prompt[:1024]) for prompt in together}) == 1
    assert len({tuple(prompt) for prompt in together}) == 32
    assert all(0 <= id < 11 for prompt in together for id in prompt)


def test_the_report_says_where_it_was_taken(
    llm: type[FakeLLM], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = run(tmp_path, "here", "--workload", "single", "--repeat", "1", "--device", "acme")
    assert llm.settings == {"model": "here", "device": "acme"}
    assert [one["name"] for one in report["workloads"]] == ["single"]
    assert (report["engine"], report["model"]) == (__version__, "here")
    assert (report["platform"], report["device"], report["dtype"]) == ("acme", "npu:0", "float16")
    assert report["ledger"] == LEDGER.splitlines()
    shown = capsys.readouterr().out
    assert "here on acme (npu:0), float16" in shown
    assert "operations from acme: linear 7" in shown
    assert "decode tokens" in shown


def test_a_shape_is_in_place_of_a_model(
    llm: type[FakeLLM], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random_models, "folder", lambda name, dtype: f"/{name}-{dtype}")
    words = ("--workload", "single", "--repeat", "1", "--shape", "135M")
    assert run(tmp_path, *words)["model"] == "135M"
    assert llm.settings["model"] == "/smollm-135m-bfloat16"
    run(tmp_path, *words, "--dtype", "float32")
    assert llm.settings["model"] == "/smollm-135m-float32"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--requests", "0"), "--requests must be at least 1"),
        (("--repeat", "0"), "--repeat must be at least 1"),
        (("here", "--shape", "tiny"), "in place of a model"),
        (("--shape", "9b"), "none of tiny, smollm-135m"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_context_that_is_too_short_is_refused(
    llm: type[FakeLLM], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(llm, "context", 1000)
    assert main(["bench"]) == 2
    assert "needs 1025 tokens of context, but the model has 1000" in capsys.readouterr().err


def test_every_workload_that_can_be_chosen_is_there() -> None:
    assert tuple(measuring.WORKLOADS) == bench.WORKLOADS


def test_a_name_of_a_shape_may_be_shortened_but_not_ambiguous() -> None:
    assert random_models.find("1.1b") == "tinyllama-1.1b"
    with pytest.raises(ConfigError, match="none of"):
        random_models.find("b")


def test_a_model_made_on_the_fly_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from engine import LLM, SamplingParams

    monkeypatch.setattr(random_models, "CACHE", tmp_path)
    folder = random_models.folder("tiny", "float32")
    assert random_models.folder("tiny", "float32") == folder
    with LLM(str(folder), device="cpu", num_blocks=8) as llm:
        [found] = llm.generate(
            "1 2 3", SamplingParams(max_tokens=4, temperature=0, ignore_eos=True)
        )
    assert found.prompt_token_ids == (1, 2, 3)
    assert found.outputs[0].text.split() == [str(id) for id in found.outputs[0].token_ids]
