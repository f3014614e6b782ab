"""`benchmarks/gpu_tune.py`: its steps, its search, and its tasks in Triton's interpreter."""

import math
import tomllib
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def interpreted():  # type: ignore[no-untyped-def]
    """The smallest sizes, and the engine's parts for a GPU whose kernels are interpreted."""
    from accelerator.job import Job, Parts
    from triton_on_cpu import create_cuda

    from engine.config import EngineConfig

    job = Job(part="", device="cpu", engine_device="cuda_on_cpu", full=False)
    parts = Parts(job)
    vars(parts)["platform"] = create_cuda(EngineConfig(device="cuda_on_cpu"), 0)
    return job, parts


ENTRY = {
    "at_most": {"head_dim": 128},
    "blocks": {"BLOCK_N": 64, "SPLIT": True, "ONE": 1},
    "options": {"num_warps": 4, "num_stages": 1, "waves_per_eu": 2},
}


def test_a_neighbour_differs_in_one_parameter_by_one_step() -> None:
    from accelerator.tuning import neighbours

    found = [{**one["blocks"], **one["options"]} for one in neighbours(ENTRY)]
    own = {**ENTRY["blocks"], **ENTRY["options"]}
    changes = [{k: v for k, v in one.items() if v != own[k]} for one in found]
    assert changes == [
        {"BLOCK_N": 128},
        {"BLOCK_N": 32},
        {"SPLIT": False},
        {"ONE": 2},
        {"num_warps": 2},
        {"num_warps": 8},
        {"num_stages": 2},
        {"waves_per_eu": 1},
        {"waves_per_eu": 3},
    ]
    assert all(one["at_most"] == ENTRY["at_most"] for one in neighbours(ENTRY))


def test_the_search_finds_the_best_parameters_past_those_that_fail() -> None:
    from accelerator.tuning import tune

    def measure(entry):  # type: ignore[no-untyped-def]
        blocks, warps = entry["blocks"]["BLOCK"], entry["options"]["num_warps"]
        if warps == 16:
            return "OutOfResources"
        off = abs(math.log2(blocks / 512)) + abs(math.log2(warps / 8))
        return {"few": 1 + off, "many": 10 + off}

    found = tune({"blocks": {"BLOCK": 64}, "options": {"num_warps": 2}}, measure)
    assert found.entry == {"blocks": {"BLOCK": 512}, "options": {"num_warps": 8}}
    assert (found.before, found.after) == ({"few": 6, "many": 15}, {"few": 1, "many": 10})
    assert found.better
    assert found.refused == {"OutOfResources": 1}


def test_parameters_that_make_one_task_much_slower_are_not_taken() -> None:
    from accelerator.tuning import saved, tune

    assert saved({"a": 2.0, "b": 1.0}, {"a": 1.0, "b": 1.2}) == 0
    assert saved({"a": 2.0, "b": 1.0}, {"a": 1.0, "b": 1.0}) == pytest.approx(math.log(2))

    def measure(entry):  # type: ignore[no-untyped-def]
        larger = entry["blocks"]["BLOCK"] > 64
        return {"few": 1.5 if larger else 1.0, "many": 1.0 if larger else 3.0}

    found = tune({"blocks": {"BLOCK": 64}}, measure)
    assert not found.better


def test_the_search_ends_when_it_is_told_and_where_nothing_can_be_measured() -> None:
    from accelerator.tuning import tune

    found = tune(ENTRY, lambda entry: {"a": 1.0}, go_on=lambda: False)
    assert (found.tried, found.entry) == (1, ENTRY)
    with pytest.raises(RuntimeError, match="the table's own parameters fail: AssertionError"):
        tune(ENTRY, lambda entry: "AssertionError")


def test_the_section_that_is_printed_says_what_the_table_said() -> None:
    from accelerator.tuning import to_toml

    entries = [
        {**ENTRY, "is": {"form": ["rows", "blocks"], "rounded": [True]}, "tuned": 'on "this"'},
        {"blocks": {"BLOCK_N": 32}},
    ]
    assert tomllib.loads(to_toml("attention_decode", entries)) == {
        "kernels": {"attention_decode": entries}
    }


def test_it_is_seen_which_entries_a_call_asks_for() -> None:
    from accelerator.tuning import Watched, apart

    from engine_triton.architecture import Architecture

    own = Architecture.named("sm_90")
    entries = apart(own.kernels["rms_norm"])
    for width in (64, 4096, 16384):
        watched = Watched.of(own, "rms_norm", entries)
        assert watched.launch("rms_norm", width=width) == own.launch("rms_norm", width=width)
        watched.launch("rotary")
        [index] = watched.used
        assert own.kernels["rms_norm"][index]["options"] == dict(
            own.launch("rms_norm", width=width).options
        )


@pytest.mark.parametrize("kernel", ["multiply", "gemv", "linear", "attention_decode", "experts"])
def test_tasks_run_with_other_parameters_and_wrong_results_are_refused(kernel, interpreted) -> None:  # type: ignore[no-untyped-def]
    import gpu_tune
    from accelerator.tasks import tasks

    job, parts = interpreted
    bench = gpu_tune.Bench(kernel, tasks(kernel, job)[:1], job, parts)
    index = next(i for i in range(len(bench.entries)) if bench.using(i))
    [label] = bench.using(index)
    own = bench.entries[index]
    name = next(name for name in own["blocks"] if name.startswith("BLOCK"))
    other = {**own, "blocks": {**own["blocks"], name: own["blocks"][name] * 2}}
    for entry in (own, other):
        times = bench.measure(index, [label], entry)
        assert list(times) == [label], times
    bench._seen[label].output.add_(1)
    assert bench.measure(index, [label], own) == "another result"


def test_every_kernel_of_the_tasks_is_in_every_table_of_a_gpu(interpreted) -> None:  # type: ignore[no-untyped-def]
    from accelerator.tasks import KERNELS

    from engine_triton.architecture import Architecture, known

    for name in known():
        assert set(KERNELS) <= set(Architecture.named(name).kernels), name


def test_a_kernel_without_tasks_is_refused_with_what_there_is(interpreted) -> None:  # type: ignore[no-untyped-def]
    from accelerator.tasks import tasks

    with pytest.raises(LookupError, match="there are argmax, attention_decode"):
        tasks("tea", interpreted[0])


def test_a_section_comes_with_the_command_and_the_chip_that_found_it(interpreted, capsys) -> None:  # type: ignore[no-untyped-def]
    import gpu_tune
    from accelerator.budget import Budget

    job, parts = interpreted
    found = gpu_tune.tuned_section("multiply", job, Budget(1e-9), parts)
    entry = tomllib.loads(found)["kernels"]["multiply"][0]
    assert entry["blocks"] == dict(parts.platform.architecture.launch("multiply").blocks)
    assert entry["tuned"].startswith("benchmarks/gpu_tune.py multiply, interpreter, 20")
    assert "the time was over" in capsys.readouterr().err


CHECKED = (
    "decode attention, tiny-qwen3",
    "mixed attention, tiny-qwen3",
    "attention with its prologue, tiny-qwen3",
    "linear, tiny-qwen3",
    "linear fp8",
    "norms, tiny-qwen3",
    "rotary, tiny-qwen3",
    "gates, tiny-qwen3",
    "cache fp8_e4m3",
    "experts",
)


@pytest.mark.parametrize("name", CHECKED)
def test_the_kernels_are_right_in_the_interpreter(name: str, interpreted) -> None:  # type: ignore[no-untyped-def]
    from accelerator import correctness
    from accelerator.records import Check

    measures = {measure.name: measure for measure in correctness.measures(*interpreted)}
    found = list(measures[name].run())
    assert found
    for record in found:
        assert isinstance(record, Check), record
        assert record.passed, record


def test_a_wrong_result_and_one_that_was_not_written_fail() -> None:
    import torch
    from accelerator.nearness import near

    right = torch.randn(64, 8).double()
    assert near("as it is", right.bfloat16(), right, 1e-2).passed
    assert not near("off", right * 1.02, right, 1e-2).passed
    right_rows = right.clone()
    right_rows[3] = float("nan")
    assert not near("unwritten", right_rows, right, 1e-2).passed
