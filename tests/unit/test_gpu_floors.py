"""The workloads of `benchmarks/gpu.py`, and the time that no engine can be under: its floors."""

from pathlib import Path

import pytest

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


def test_a_floor_needs_its_ceilings() -> None:
    from accelerator import ceilings

    facts = {"copy, GB/s": 4300.0, "read, GB/s": 4100.0, "memory, GB": 140.0}
    with pytest.raises(LookupError, match="bf16 matrix product"):
        ceilings.of(facts)
    found = ceilings.of({**facts, "bf16 matrix product, TFLOP/s": 790.0})
    assert found.bytes_per_s == 4.3e12
    assert found.fp8_flops is None
