"""What `benchmarks/gpu.py` does besides measuring: floors, workloads, time, processes, a table."""

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


@pytest.fixture
def h200():  # type: ignore[no-untyped-def]
    """Ceilings as they were once measured on one."""
    from accelerator.floors import Ceilings

    return Ceilings(bytes_per_s=4.3e12, bf16_flops=790e12, fp8_flops=1480e12, memory_bytes=140e9)


def test_the_common_workload_has_the_published_numbers_of_tokens() -> None:
    from accelerator.workloads import nano

    workload = nano()
    assert len(workload.prompts) == 256
    assert (workload.prompt_tokens, workload.output_tokens) == (142_827, 133_966)
    assert all(100 <= len(prompt) <= 1024 for prompt in workload.prompts)
    assert workload.temperature == 0.6


def test_no_two_prompts_of_a_uniform_workload_begin_alike() -> None:
    from accelerator.workloads import uniform

    workload = uniform("128/128", 64, 128, 16, 50000)
    assert {len(prompt) for prompt in workload.prompts} == {128}
    assert workload.outputs == (16,) * 64
    assert len({prompt[:4] for prompt in workload.prompts}) == 64
    assert workload == uniform("128/128", 64, 128, 16, 50000)
    assert workload.prompts[0] != uniform("other", 64, 128, 16, 50000).prompts[0]


# Published: bytes of weights a step, KiB of KV a token, ms of a step at batch 1, ms until the
# first token of prompts of 128, 1k, 4k and 8k, tokens a second of nano-vllm's bench.py.
PUBLISHED = {
    "llama-3.1-8b": (15.01e9, 128, 3.49, (3.5, 18.4, 77.9, 167), 13_300),
    "qwen2.5-7b": (14.14e9, 56, 3.29, (3.3, 17.2, 71.9, 152), None),
    "qwen3-0.6b": (1.19e9, 112, 0.277, (0.3, 1.3, 7.0, 18.9), 36_100),
    "qwen2.5-0.5b": (0.99e9, 12, 0.230, (0.2, 1.0, 4.6, 11.1), 183_000),
}


@pytest.mark.parametrize("model", PUBLISHED)
def test_floors_are_those_that_were_published_for_an_h200(model: str, h200) -> None:  # type: ignore[no-untyped-def]
    from accelerator.floors import Floors
    from accelerator.models import SHAPES
    from accelerator.workloads import nano

    weights, kv_kib, step_ms, first_ms, rate = PUBLISHED[model]
    floors = Floors(SHAPES[model], h200)
    assert floors.weight_bytes == pytest.approx(weights, rel=5e-3)
    assert floors.kv_bytes_per_token == kv_kib * 1024
    assert 1e3 * floors.decode_step_s(1, 0) == pytest.approx(step_ms, rel=3e-3)
    for tokens, expected in zip((128, 1024, 4096, 8192), first_ms, strict=True):
        assert 1e3 * floors.first_token_s(tokens) == pytest.approx(expected, rel=5e-3, abs=0.06)
    if rate is not None:
        assert floors.output_rate(nano()) == pytest.approx(rate, rel=5e-3)


@pytest.mark.parametrize(
    ("model", "bits", "count", "tokens", "expected"),
    [
        ("llama-3.1-8b", "bf16", 2048, (128, 128), 23_500),
        ("llama-3.1-8b", "bf16", 838, (1000, 1000), 12_100),
        ("llama-3.1-8b", "bf16", 1000, (2048, 128), 2_650),
        ("llama-3.1-8b", "fp8", 2048, (128, 128), 43_600),
        ("llama-3.1-8b", "fp8", 1676, (1000, 1000), 23_200),
        ("qwen3-0.6b", "bf16", 2048, (128, 128), 129_000),
    ],
)
def test_saturated_floors_are_those_that_were_published(  # type: ignore[no-untyped-def]
    model: str, bits: str, count: int, tokens: tuple[int, int], expected: float, h200
) -> None:
    from accelerator.floors import BF16, FP8, Floors
    from accelerator.models import SHAPES
    from accelerator.workloads import uniform

    floors = Floors(SHAPES[model], h200, {"bf16": BF16, "fp8": FP8}[bits])
    assert floors.output_rate(uniform("any", count, *tokens, 9)) == pytest.approx(
        expected, rel=1e-2
    )


def test_fp8_weights_lower_the_floor_of_one_stream(h200) -> None:  # type: ignore[no-untyped-def]
    from accelerator.floors import FP8, Floors
    from accelerator.models import SHAPES

    floors = Floors(SHAPES["llama-3.1-8b"], h200, FP8)
    assert 1e3 * floors.decode_step_s(1, 0) == pytest.approx(1.87, rel=3e-3)


def test_requests_wait_where_their_kv_does_not_fit() -> None:
    from accelerator.floors import Ceilings, Floors
    from accelerator.models import SHAPES
    from accelerator.workloads import uniform

    shape = SHAPES["tiny-llama"]
    workload = uniform("any", 4, 8, 4, 9)

    def floors(tokens: int) -> Floors:
        needed = Floors(
            shape, Ceilings(bytes_per_s=1e9, bf16_flops=1e12, fp8_flops=None, memory_bytes=0)
        )
        stored = needed.weight_bytes + 2 * shape.head_weights
        room = (stored + tokens * needed.kv_bytes_per_token + 1) / 0.9
        return Floors(
            shape, Ceilings(bytes_per_s=1e9, bf16_flops=1e12, fp8_flops=None, memory_bytes=room)
        )

    together, in_turn = floors(48), floors(12)
    assert (together.room_tokens, in_turn.room_tokens) == (48, 12)
    prefill = 4 * together.prefill_s(8)
    steps = [together.decode_step_s(4, 4 * tokens) for tokens in (9, 10, 11)]
    assert together.workload_s(workload) == pytest.approx(prefill + sum(steps))
    steps = [in_turn.decode_step_s(1, tokens) for tokens in (9, 10, 11)]
    assert in_turn.workload_s(workload) == pytest.approx(prefill + 4 * sum(steps))


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


def test_overlapping_kernels_keep_the_device_busy_once() -> None:
    from accelerator.anatomy import Event, dissect

    step = [Event("gemm", 0, 4), Event("norm", 3, 6), Event("gemm", 8, 10)]
    events = step + [Event(one.name, one.start + 10, one.stop + 10) for one in step]
    found = dissect(events[::-1], 2)
    assert found.events == 3
    assert found.seconds == pytest.approx(10e-6)
    assert found.busy_share == pytest.approx(0.8)  # 6 and 2 of every 10
    assert found.kernels == (("gemm", 6.0, 2.0), ("norm", 3.0, 1.0))


def test_what_a_longer_run_has_more_of_are_decode_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerator import anatomy
    from accelerator.workloads import Workload

    def events(run, workload):  # type: ignore[no-untyped-def]
        prompt = [anatomy.Event("prompt", -50, 0)]
        steps = range(workload.outputs[0])
        return prompt + [anatomy.Event("step", 10 * i, 10 * i + 5) for i in steps]

    monkeypatch.setattr(anatomy, "_events", events)
    short, long = (Workload("any", ((1,),), (count,)) for count in (9, 41))
    found = {one.name: one for one in anatomy.anatomy("m", lambda workload: None, short, long)}
    assert found["m, kernels and copies a step"].value == 1
    assert found["m, device busy"].value == pytest.approx(100 * 160 / 315)
    assert found["m, kernel 1"].value.startswith("100.0%, 5.0 us a step, 1.0 times: step")


def test_a_request_of_another_length_is_noticed() -> None:
    from accelerator.participants import check
    from accelerator.workloads import Workload

    workload = Workload("any", ((1,), (2,)), (3, 4))
    check(workload, [3, 4])
    with pytest.raises(RuntimeError, match="the first has 2 tokens instead of 4"):
        check(workload, [3, 2])


def test_a_floor_needs_its_ceilings() -> None:
    from accelerator import ceilings

    facts = {"copy, GB/s": 4300.0, "read, GB/s": 4100.0, "memory, GB": 140.0}
    with pytest.raises(LookupError, match="bf16 matrix product"):
        ceilings.of(facts)
    found = ceilings.of({**facts, "bf16 matrix product, TFLOP/s": 790.0})
    assert found.bytes_per_s == 4.3e12
    assert found.fp8_flops is None


class HostEvent:
    """Of a clock that every call moves on by a millisecond."""

    clock = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = HostEvent.clock

    def synchronize(self) -> None: ...

    def elapsed_time(self, stop: "HostEvent") -> float:
        return stop.at - self.at


@pytest.mark.parametrize("capturable", [True, False])
def test_what_cannot_be_captured_is_launched_one_by_one_and_said(
    capturable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerator import timing

    def work() -> None:
        HostEvent.clock += 1.0

    def captured(calls, rounds, device):  # type: ignore[no-untyped-def]
        if not capturable:
            raise RuntimeError("operation not permitted when stream is capturing")
        return lambda: [call() for _ in range(rounds) for call in calls]

    monkeypatch.setattr(timing, "_captured", captured)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "Event", HostEvent)
    timed = timing.time_calls([work, work, work], "cuda:0")
    assert timed == timing.Timed(pytest.approx(1e-3), capturable)


def test_as_many_inputs_take_turns_as_no_cache_holds() -> None:
    from accelerator.timing import CACHE_BYTES, turns

    assert turns(CACHE_BYTES) == 1
    assert turns(CACHE_BYTES - 1) == 2
    assert turns(CACHE_BYTES / 4) == 4
    assert turns(1) == 16
    assert turns(1, most=3) == 3
