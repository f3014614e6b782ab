"""What `benchmarks/gpu.py` does besides measuring: time, models, processes, a table."""

import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_parts_get_their_share_and_what_was_saved_and_never_more_than_there_is() -> None:
    from accelerator.budget import Budget

    clock = Clock()
    budget = Budget(100, clock)
    assert budget.grant(40, 10) == 40
    clock.now += 25
    assert budget.grant(30, 10) == 45  # 15 were saved
    clock.now += 60
    assert budget.grant(30, 10) == 15  # all that is left
    clock.now += 10
    assert budget.grant(30, 10) is None
    assert (budget.spent_s, budget.left_s) == (95, 5)


def test_a_ratio_over_one_means_that_ours_is_better_and_a_floor_is_the_best() -> None:
    from accelerator.records import OURS, Value, lines

    found = lines(
        [
            Value("step", OURS, 4.0, "ms", floor=3.0),
            Value("rate", OURS, 30.0, "tokens/s", higher_is_better=True, floor=40.0),
            Value("step", "a library", 8.0, "ms"),
            Value("rate", "a library", 60.0, "tokens/s", higher_is_better=True),
            Value("rate", "another", 10.0, "tokens/s", higher_is_better=True),
            Value("alone", "a library", 1.0, "us"),
        ]
    )
    assert [(line.name, line.anchor, line.ratio, line.of_floor) for line in found] == [
        ("step", "a library", 2.0, 0.75),
        ("rate", "a library", 0.5, 0.75),
        ("rate", "another", 3.0, 0.75),
        ("alone", "a library", None, None),
    ]


def test_records_survive_the_way_between_processes() -> None:
    from accelerator.records import OURS, Check, Fact, Value, from_json, to_json

    for record in (Fact("a", 1.5), Check("b", False, "why"), Value("c", OURS, 1.0, "us", floor=2)):
        assert from_json(json.loads(json.dumps(to_json(record)))) == record


def test_the_table_tells_correctness_first_and_what_was_not_run() -> None:
    import gpu
    from accelerator.conductor import Results
    from accelerator.records import OURS, Check, Value

    results = Results(not_run={"kernels": "2 s were left"})
    for record in (
        Check("attention [decode]", False, "error 0.3, allowed 0.01"),
        Check("norms", True, "error 0"),
        Value("one stream", OURS, 4.0, "ms", floor=3.0),
        Value("one stream", "transformers", 20.0, "ms"),
    ):
        results.add(record)
    text = io.StringIO()
    gpu.tell(Console(file=text, width=100), results)
    said = [" ".join(line.split()) for line in text.getvalue().splitlines() if line.strip()]
    assert said == [
        "FAIL attention [decode]: error 0.3, allowed 0.01",
        "FAIL: 1 of 2 checks hold",
        "name ours anchor ratio % of floor",
        "one stream, ms 4 20 transformers 5.00 75",
        "Not run:",
        "kernels: 2 s were left",
    ]


def test_what_could_not_be_checked_is_not_right() -> None:
    import gpu
    from accelerator.conductor import Results
    from accelerator.records import Check

    holds, fails = Check("a", True, ""), Check("b", False, "")
    assert gpu.right(Results(checks=[holds], not_run={"kernels, linear": "no time"}))
    assert not gpu.right(Results(checks=[holds, fails]))
    assert not gpu.right(
        Results(checks=[holds], not_run={"right, kernels: rest, linear": "no time"})
    )


def test_without_a_gpu_it_says_so_and_exits_with_status_two(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import gpu
    import gpu_tune

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2
    assert capsys.readouterr().err.startswith("There is no GPU that torch")
    assert gpu_tune.main(["gemv"]) == 2
    assert capsys.readouterr().err.startswith("There is no GPU that torch")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "gpt-5"], "invalid choice"),
        (["--only", "tea"], "is in no title"),
        (["--budget-s", "0"], "must be more than 0"),
    ],
)
def test_wrong_arguments_are_refused_with_what_there_is(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import gpu

    with pytest.raises(SystemExit):
        gpu.main(arguments)
    assert message in capsys.readouterr().err


def test_everything_usually_fits_nine_minutes_but_for_the_last_parts() -> None:
    import gpu

    spent, fitting = 0.0, []
    for together in gpu.parts(gpu.MODELS, has_vllm=True):
        spent += max(part.share_s for part in together)
        fitting += [part.title for part in together] if spent <= 540 else []
    assert fitting[:2] == ["machine", "ceilings"]
    assert all(title.startswith(gpu.RIGHT) for title in fitting[2:9])
    assert set(fitting[9:]) >= {
        "qwen3-0.6b bf16, ours",
        "llama-3.1-8b bf16, ours",
        "kernels",
        "qwen3-0.6b bf16, transformers",
        "llama-3.1-8b fp8, ours",
    }


def test_every_part_that_checks_asks_for_what_there_is() -> None:
    import gpu
    from accelerator import agreement, correctness
    from accelerator.job import Job

    modules = {"correctness": correctness, "agreement": agreement}
    for rehearse in (False, True):
        checked = gpu.parts(gpu.MODELS, has_vllm=False, rehearse=rehearse)[2]
        assert {part.module for part in checked} == set(modules)
        for part in checked:
            job = Job(
                part=part.module,
                arguments=part.arguments,
                device="cpu",
                engine_device="cpu",
                full=not rehearse,
            )
            assert modules[part.module].measures(job), part.title


def test_random_weights_go_where_there_is_room(tmp_path: Path) -> None:
    from accelerator import models

    assert models.place(0, memory=tmp_path, temporary=tmp_path / "other") == tmp_path
    assert models.place(0, memory=tmp_path / "none", temporary=tmp_path) == tmp_path
    with pytest.raises(OSError, match=r"fit neither of .*--models"):
        models.place(1 << 60, memory=tmp_path, temporary=tmp_path)


@pytest.mark.parametrize("name", ["tiny-qwen3", "tiny-llama"])
def test_a_random_model_is_one_that_transformers_reads(name: str, tmp_path: Path) -> None:
    from accelerator.models import SHAPES, make
    from transformers import AutoModelForCausalLM

    folder = make(name, tmp_path, "cpu")
    assert make(name, tmp_path, "cpu") == folder
    model, told = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    shape = SHAPES[name]
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    total = sum(matrix.numel() for matrix in matrices)
    head = 0 if shape.tie_word_embeddings else shape.head_weights
    assert total == shape.layer_weights + head
    stored = sum(p.stat().st_size for p in folder.glob("*.safetensors"))
    assert stored == pytest.approx(shape.num_bytes, rel=0.1)
    assert matrices[0].std().item() == pytest.approx(0.02, rel=0.1)


def test_a_request_of_another_length_is_noticed() -> None:
    from accelerator.participants import check
    from accelerator.workloads import Workload

    workload = Workload("any", ((1,), (2,)), (3, 4))
    check(workload, [3, 4])
    with pytest.raises(RuntimeError, match="the first has 2 tokens instead of 4"):
        check(workload, [3, 2])
