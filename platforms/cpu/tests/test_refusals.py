"""Every operation and backend of the CPU platform that is refused says why."""

import pytest

from engine.config import EngineConfig
from engine.errors import UnsupportedError
from engine.platform import AttentionSpec, OpTable
from engine.platform.ops import LOWER_PRIORITY
from engine_cpu import native
from engine_cpu.attention import PagedAttention
from engine_cpu.platform import CpuPlatform, NoNativeAttention

needs_native = pytest.mark.skipif(native.available() is not None, reason=str(native.available()))

SPEC = AttentionSpec(
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    block_size=16,
    dtype="float32",
    kv_dtype="float32",
    scale=0.5,
)


def reference() -> object:
    raise AssertionError("nobody computes here")


def refusals(name: str, **facts: object) -> dict[str, list[str]]:
    """Why each source was refused. The reference in this table, unlike the core's, takes all."""
    table = OpTable()
    table.register(name, source="reference")(reference)
    CpuPlatform(EngineConfig()).ops(table)
    table.choose(name, **{"dtype": "float32", "device": "cpu:0", **facts})
    [answer] = table.answers
    found: dict[str, list[str]] = {}
    for source, why in answer.refused:
        found.setdefault(source, []).append(why)
    return found


def test_quantized_factories_refuse_other_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.VARIABLE, "0")
    for name in ("linear", "tied_embedding", "mixture_of_experts"):
        assert refusals(name, quantization=None)["cpu"] == [
            "it rounds weights to int8, and no rounding is asked for",
            "it rounds weights to int4, and no rounding is asked for",
        ]
        assert refusals(name, quantization="int4") == {
            "cpu": ["it rounds weights to int8, and int4 is asked for"],
            "reference": [LOWER_PRIORITY],
        }


@needs_native
@pytest.mark.parametrize("name", ["rms_norm", "rotary", "embedding", "argmax", "linear"])
@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"dtype": "float64"}, "dtype float64 is not one of float32, bfloat16, float16"),
        ({"device": "npu:0"}, "it computes on the CPU, not on npu:0"),
    ],
)
def test_native_kernels_refuse_other_dtypes_and_devices(
    name: str, facts: dict[str, str], reason: str
) -> None:
    assert reason in refusals(name, quantization=None, **facts)["cpu-native"]


@needs_native
def test_native_kernels_of_whole_weights_refuse_to_quantize() -> None:
    found = refusals("linear", quantization="int8", dtype="float64")
    assert found["cpu-native"] == [
        "it keeps weights as they are, not in int8",
        "dtype float64 is not one of float32, bfloat16, float16",
        "it rounds weights to int4, and int8 is asked for",
    ]


@needs_native
def test_the_first_backend_that_serves_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(native.VARIABLE, raising=False)
    platform = CpuPlatform(EngineConfig())
    best, other = platform.attention_backends
    assert best.unsupported(SPEC) == "block_size must be a multiple of 32, got 16"
    assert type(platform.attention(SPEC)) is other is PagedAttention


def test_without_kernels_something_stands_in_their_place_that_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(native.VARIABLE, "0")
    platform = CpuPlatform(EngineConfig())
    assert platform.attention_backends == (NoNativeAttention, PagedAttention)
    assert NoNativeAttention.unsupported(SPEC) == "ENGINE_CPU_NATIVE is 0"
    monkeypatch.setenv(native.VARIABLE, "1")  # later: this platform goes on without
    assert type(platform.attention(SPEC)) is PagedAttention


def test_where_no_backend_serves_the_error_gives_every_reason() -> None:
    spec = AttentionSpec(**{name: getattr(SPEC, name) for name in SPEC.__slots__} | {"head_dim": 0})
    platform = CpuPlatform(EngineConfig())
    with pytest.raises(UnsupportedError) as raised:
        platform.attention(spec)
    for backend in platform.attention_backends:
        assert f"{backend.__name__}: {backend.unsupported(spec)}" in str(raised.value)
