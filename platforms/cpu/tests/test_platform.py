"""How the CPU platform presents itself, and the parts it hands over."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import engine_cpu
from engine.config import EngineConfig
from engine.errors import UnsupportedError
from engine.platform import AttentionSpec, EagerRunner, OpTable, SoloCommunicator
from engine_cpu import ops
from engine_cpu.attention import PagedAttention
from engine_cpu.platform import BLOCK_SIZES, CpuPlatform, capabilities
from engine_cpu.processor import Processor

SPEC = AttentionSpec(
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    block_size=16,
    dtype="float32",
    kv_dtype="float32",
    scale=1.0,
)


@pytest.fixture
def platform() -> CpuPlatform:
    return CpuPlatform(EngineConfig())


def test_a_start_and_a_first_token_load_no_compiler_of_torch() -> None:
    """It takes longer to import than all the rest."""
    code = (
        "import sys; from engine import LLM, SamplingParams\n"
        "with LLM(device='cpu') as llm: llm.generate(['1 + 1'], SamplingParams(max_tokens=2))\n"
        "assert 'torch' in sys.modules and 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_probing_imports_no_torch() -> None:
    code = (
        "import sys, engine_cpu; [spec] = engine_cpu.engine_platforms(); found = spec.probe();"
        "spec.defaults(); spec.environment(0); assert 'torch' not in sys.modules; print(found)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"Availability(devices={Processor().cores}, detail='")


def test_without_torch_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec("engine_cpu")
    without = {"torch": None}
    monkeypatch.setattr(engine_cpu, "find_spec", lambda name: without.get(name, found))
    assert not engine_cpu.probe()
    assert "pip install 'engine[cpu]'" in engine_cpu.probe().detail


def cpuinfo(root: Path, flags: str) -> Processor:
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc/cpuinfo").write_text(f"flags : {flags}\n")
    return Processor(root)


@pytest.mark.parametrize(
    ("flags", "with_native", "best"),
    [
        ("avx512f", False, "float32"),
        ("avx512f amx_bf16", False, "bfloat16"),
        ("avx512f", True, "bfloat16"),  # widened on the way
    ],
)
def test_bfloat16_is_best_where_it_is_not_slow(
    tmp_path: Path, flags: str, with_native: bool, best: str
) -> None:
    found = capabilities(cpuinfo(tmp_path, flags), with_native=with_native)
    assert found.dtypes[0] == best
    assert set(found.dtypes) == {"float32", "bfloat16", "float16"}
    assert ("int8" in found.kv_dtypes) == with_native


def test_cores_are_shared_between_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Processor, "cores", 8)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert engine_cpu.environment(0)["OMP_NUM_THREADS"] == "8"
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert engine_cpu.environment(2)["OMP_NUM_THREADS"] == "2"
    monkeypatch.setenv("WORLD_SIZE", "16")
    assert engine_cpu.environment(2)["OMP_NUM_THREADS"] == "1"


def test_torch_takes_as_many_threads_as_the_environment_says() -> None:
    """Ours and, for none of ours may stand in its way, a user's own."""
    settings = {**os.environ, **engine_cpu.environment(0), "OMP_NUM_THREADS": "1"}
    code = "import torch; print(torch.get_num_threads())"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=settings
    )
    assert done.stdout.strip() == "1"


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_every_block_size_it_declares_has_a_backend(platform: CpuPlatform, block_size: int) -> None:
    spec = AttentionSpec(**{**fields(SPEC), "block_size": block_size})
    by_torch = platform.without_native is not None or block_size % 32 > 0
    assert isinstance(platform.attention(spec), PagedAttention) == by_torch


def test_without_the_native_kernels_it_computes_with_torch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ENGINE_CPU_NATIVE", "0")
    platform = CpuPlatform(EngineConfig())
    assert platform.without_native == "ENGINE_CPU_NATIVE is 0"
    assert isinstance(platform.attention(SPEC), PagedAttention)
    assert isinstance(platform.graphs(), EagerRunner)
    table = OpTable()
    platform.ops(table)
    assert table.choose("rms_norm", dtype="float32", device="cpu:0", width=8) is ops.rms_norm


def test_attention_it_does_not_have_is_refused_with_the_reason(platform: CpuPlatform) -> None:
    spec = AttentionSpec(**{**fields(SPEC), "kv_dtype": "fp8_e4m3"})
    with pytest.raises(UnsupportedError, match="kv_dtype 'fp8_e4m3' is not one of float32"):
        platform.attention(spec)


def test_ranks_without_a_place_to_meet_are_refused(
    platform: CpuPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    assert isinstance(platform.communicator((0,)), SoloCommunicator)
    with pytest.raises(UnsupportedError, match="set MASTER_ADDR and MASTER_PORT"):
        platform.communicator((0, 1))


def fields(spec: AttentionSpec) -> dict[str, object]:
    return {name: getattr(spec, name) for name in AttentionSpec.__dataclass_fields__}
