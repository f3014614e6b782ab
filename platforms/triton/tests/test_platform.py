"""What both platforms have from the shared one, on the host."""

import pytest
from host_gpu import HostGpu, on_host
from triton_on_cpu import spec

from engine.config import EngineConfig
from engine.errors import UnsupportedError
from engine.platform import AttentionSpec, EagerRunner, OpTable, StepLimits
from engine_triton.capture import CapturedRunner
from engine_triton.platform import TritonPlatform

LIMITS = StepLimits(max_tokens=64, max_requests=2, max_model_len=100, block_size=16)


class Minimal(TritonPlatform):
    """No more than a subclass must say."""

    def open(self, index):
        return HostGpu()


@pytest.fixture
def platform():
    made = on_host(Minimal, "minimal")(EngineConfig(device="minimal"))
    yield made
    made.close()
    made.close()


def attention_spec(**wrong):
    good = {"num_heads": 8, "num_kv_heads": 2, "head_dim": 64, "block_size": 16, "scale": 0.125}
    return AttentionSpec(**{**good, "dtype": "bfloat16", "kv_dtype": "bfloat16", **wrong})


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"head_dim": 320}, "head_dim is at most 256, got 320"),
        ({"kv_dtype": "int8"}, "'int8' is not one of"),
        ({"num_heads": 7}, "7 heads cannot share 2 key/value heads"),
    ],
)
def test_attention_that_is_not_computed_is_refused_with_the_reason(platform, wrong, why):
    with pytest.raises(UnsupportedError, match=f"of the minimal platform: .*{why}"):
        platform.attention(attention_spec(**wrong))


@pytest.mark.parametrize("kv_dtype", ["bfloat16", "float16", "float32", "fp8_e4m3", "fp8_e5m2"])
def test_every_dtype_and_block_size_it_declares_is_served(platform, kv_dtype):
    assert kv_dtype in platform.capabilities.kv_dtypes
    for block_size in platform.capabilities.block_sizes:
        for dtype in platform.capabilities.dtypes:
            asked = attention_spec(dtype=dtype, kv_dtype=kv_dtype, block_size=block_size)
            assert platform.attention(asked).kv_layout().dtype == kv_dtype


def test_operations_bear_the_platform_s_name(platform):
    table = OpTable()
    platform.ops(table)
    assert {"rms_norm", "linear", "argmax", "sample", "mixture_of_experts"} <= set(table.names)
    facts = {"in_features": 64, "out_features": 32, "bias": False, "quantization": "fp8"}
    table.choose("linear", dtype="bfloat16", device="cpu:0", **facts)
    assert list(table.chosen) == [("linear", "minimal")]


def test_steps_are_captured_once_their_limits_are_known(platform):
    assert isinstance(platform.graphs(), EagerRunner)
    assert platform.buckets(LIMITS) is None
    runner = platform.graphs()
    assert isinstance(runner, CapturedRunner)
    assert runner.sizes == (1, 2)


def test_the_library_of_collectives_is_entered_when_ranks_are_several(platform, monkeypatch):
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    entered = []
    monkeypatch.setattr(type(platform), "register_collectives", lambda self: entered.append(1))
    assert platform.communicator((0,)).size == 1
    assert entered == []
    with pytest.raises(UnsupportedError, match="need a place to meet"):
        platform.communicator((0, 1))
    assert entered == [1]


def test_the_stand_ins_are_the_platforms_own_classes():
    for name in ("cuda", "rocm"):
        made = spec(f"{name}_on_cpu").create(EngineConfig(device=name), 0)
        parent = type(made).__mro__[1]
        assert (parent.name, parent.__module__) == (name, f"engine_{name}.platform")
        assert issubclass(parent, TritonPlatform)
