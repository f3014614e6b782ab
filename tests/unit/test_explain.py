"""`engine explain` says what an engine that is really started does."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engine import assemble as assembling
from engine.assemble import assemble
from engine.cli import main
from engine.config import DeviceChoice
from engine.errors import ConfigError, UnsupportedError
from engine.explain import LOADED, NOT_ASKED, ON_SHAPES, Explanation, Part, Setting, explain
from engine.explain.parts import ON_HOST
from engine.platform import (
    AttentionBackend,
    Availability,
    Capabilities,
    OpTable,
    Platform,
    PlatformSpec,
    ShapeBuckets,
    StepLimits,
)
from engine.plugins import Finding, PluginManager
from engine.testing.null import null_spec


def parts(found: Explanation, kind: str) -> list[Part]:
    return [part for part in found.parts if part.kind == kind]


def setting(found: Explanation, name: str) -> Setting:
    [one] = [one for one in found.settings if one.name == name]
    return one


class Only(PluginManager):
    """Selects one given spec, whatever is installed."""

    def __init__(self, spec: PlatformSpec) -> None:
        super().__init__({})
        self._given = spec

    def select(self, device: DeviceChoice | str) -> PlatformSpec:
        return self._given

    def find(self, name: str) -> Finding:
        return Finding(name, "its own package", self._given, self._given.probe())


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> list[OpTable]:
    """Every table that is made, in order."""
    made: list[OpTable] = []
    operations = assembling.operations

    def noting(platform: Platform, plugins: PluginManager) -> OpTable:
        made.append(operations(platform, plugins))
        return made[-1]

    monkeypatch.setattr(assembling, "operations", noting)
    return made


@pytest.fixture
def backends(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The class of every attention backend that the CPU platform makes, in order."""
    from engine_cpu.platform import CpuPlatform

    made: list[str] = []
    attention = CpuPlatform.attention

    def noting(platform: CpuPlatform, spec: Any) -> AttentionBackend:
        backend = attention(platform, spec)
        made.append(f"{type(backend).__qualname__} ({type(backend).__module__})")
        return backend

    monkeypatch.setattr(CpuPlatform, "attention", noting)
    return made


@pytest.mark.parametrize(
    ("settings", "native"),
    [
        ({}, "1"),
        ({}, "0"),
        ({"quantization": "int8", "dtype": "float32"}, "1"),
        ({"quantization": "int4", "block_size": 16, "overlap": True}, "1"),
        ({"prefix_caching": False, "max_model_len": 256, "max_requests": 3}, "0"),
    ],
)
def test_it_tells_what_the_engine_does(
    settings: dict[str, Any],
    native: str,
    tables: list[OpTable],
    backends: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ENGINE_CPU_NATIVE", native)
    settings = {"device": "cpu", "num_blocks": 160, **settings}
    found = explain(settings)
    engine = assemble(settings)
    try:
        explained, real = tables
        assert explained.answers == real.answers
        assert [part.chosen for part in parts(found, "attention")] == backends[:1] == backends[1:]
        facts, loop = engine.facts, engine.loop
        used = {
            "dtype": facts.dtype,
            "block_size": facts.block_size,
            "max_model_len": facts.max_model_len,
            "prefix_caching": facts.prefix_caching,
            "overlap": loop.overlap,
            "max_batch_tokens": loop.scheduler.max_batch_tokens,
            "max_requests": loop.scheduler.max_requests,
        }
        assert {name: setting(found, name).value for name in used} == used
    finally:
        engine.close()


def test_every_choice_of_the_table_is_shown_once(tables: list[OpTable]) -> None:
    found = explain({"device": "cpu"})
    operations = [part for part in found.parts if part.chosen in ("cpu", "cpu-native", "reference")]
    assert sum(part.times for part in operations) == sum(tables[0].answers.values())
    assert {part.kind for part in operations} == {
        "embedding and output",
        "norm",
        "rotary positions",
        "linear",
        "feed-forward",
        "sampler",
    }
    assert found.basis == ON_SHAPES


def test_each_setting_tells_who_decided_it() -> None:
    found = explain({"device": "cpu", "max_requests": 3, "kv_dtype": "float16"})
    assert {one.name: one.decided_by for one in found.settings} == {
        "model": "default",
        "revision": "default",
        "device": "user",
        "dtype": "capability",
        "kv_dtype": "user",
        "quantization": "default",
        "block_size": "capability",
        "max_model_len": "model",
        "max_batch_tokens": "default",
        "max_requests": "user",
        "memory_fraction": "default",
        "num_blocks": "loading",
        "prefix_caching": "default",
        "overlap": "platform",
        "step_target_s": "platform",
        "seed": "default",
        "trust_remote_code": "default",
        "tensor_parallel": "default",
        "step_timeout_s": "default",
    }


def test_the_checkpoints_own_dtype_is_told_apart_from_the_devices(tmp_path: Path) -> None:
    from engine import embedded

    config = json.loads((embedded.path() / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"dtype": "float16"}))
    spec = PluginManager().select("cpu")
    capable = Capabilities(dtypes=("bfloat16", "float16"), kv_dtypes=("bfloat16",))
    found = explain({"model": str(tmp_path)}, Only(changed(spec, capabilities=capable)))
    dtype, kv_dtype = setting(found, "dtype"), setting(found, "kv_dtype")
    assert (dtype.value, dtype.decided_by) == ("float16", "model")
    assert (kv_dtype.value, kv_dtype.why) == (
        "bfloat16",
        "dtype is none of the device's bfloat16; its first",
    )


def changed(spec: PlatformSpec, **attributes: object) -> PlatformSpec:
    """A spec of a platform with other attributes."""

    def create(config: Any, rank: int) -> Platform:
        platform = spec.create(config, rank)
        for name, value in attributes.items():
            setattr(platform, name, value)
        return platform

    return PlatformSpec(name=spec.name, api=spec.api, probe=two_devices, create=create)


def two_devices() -> Availability:
    return Availability(2, "2 x something")


def test_what_the_device_cannot_do_changes_the_settings_that_ask_for_it() -> None:
    """No prefix reuse, prompts whole."""
    spec = PluginManager().select("cpu")
    careful = Capabilities(dtypes=("float32",), block_sizes=(32,))
    found = explain({"max_batch_tokens": 64}, Only(changed(spec, capabilities=careful)))
    caching, tokens = setting(found, "prefix_caching"), setting(found, "max_batch_tokens")
    assert (caching.value, caching.decided_by) == (False, "capability")
    assert (tokens.value, tokens.why) == (2048, "raised from 64: the device takes prompts whole")


def test_static_shapes_are_told_and_lower_what_goes_beyond_them() -> None:
    spec = PluginManager().select("cpu")
    capable = Capabilities(block_sizes=(32,), chunked_prefill=True, static_shapes=True)
    asked: list[StepLimits] = []

    def buckets(limits: StepLimits) -> ShapeBuckets:
        asked.append(limits)
        blocks = (limits.max_blocks,)
        return ShapeBuckets(tokens=(16, 128), requests=(4,), decodes=(1, 8), blocks=blocks)

    platform = changed(spec, capabilities=capable, buckets=buckets)
    found = explain({"max_requests": 20, "max_batch_tokens": 512}, Only(platform))
    assert [limits.max_requests for limits in asked] == [20]
    requests, tokens = setting(found, "max_requests"), setting(found, "max_batch_tokens")
    assert (requests.value, requests.decided_by) == (8, "capability")
    assert (tokens.value, tokens.decided_by) == (128, "capability")
    [graphs] = parts(found, "graph runner")
    assert graphs.question == "steps of 4 shapes"


def test_a_sampler_on_the_host_does_not_ask_the_devices_table(tables: list[OpTable]) -> None:
    capable = Capabilities(block_sizes=(32,), sampling="host")
    only = Only(changed(PluginManager().select("cpu"), capabilities=capable))
    found = explain({"num_blocks": 64}, only)
    [part] = parts(found, "sampler")
    assert part == ON_HOST
    assemble({"num_blocks": 64}, only).close()
    assert tables[0].answers == tables[1].answers


def test_refused_attention_backends_give_their_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("engine_cpu_kernels")
    monkeypatch.delenv("ENGINE_CPU_NATIVE", raising=False)
    [part] = parts(explain({"device": "cpu", "block_size": 16}), "attention")
    [refused] = part.refused
    assert part.chosen == "PagedAttention (engine_cpu.attention)"
    assert (refused.name, refused.why) == (
        "NativeAttention",
        "block_size must be a multiple of 32, got 16",
    )


def test_kernels_that_are_not_in_use_give_their_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINE_CPU_NATIVE", "0")
    [part] = parts(explain({"device": "cpu"}), "attention")
    assert [(one.name, one.why) for one in part.refused] == [
        ("NoNativeAttention", "ENGINE_CPU_NATIVE is 0")
    ]


def test_that_no_attention_backend_serves_is_an_answer() -> None:
    spec = PluginManager().select("cpu")
    capable = Capabilities(dtypes=("float32",), kv_dtypes=("fp8_e4m3",), block_sizes=(32,))
    found = explain({}, Only(changed(spec, capabilities=capable)))
    [part] = parts(found, "attention")
    assert part.chosen is None
    assert not found.possible
    assert "kv_dtype 'fp8_e4m3' is not one of" in part.refused[-1].why


def test_a_platform_with_its_own_runner_is_not_asked_for_parts() -> None:
    found = explain({}, Only(null_spec()))
    [part] = found.parts
    assert part.chosen == "NullRunner (engine.testing.null)"
    assert found.basis == NOT_ASKED


def test_a_model_of_transformers_code_is_loaded_to_be_known(tmp_path: Path) -> None:
    import torch
    import transformers

    torch.manual_seed(0)
    sizes = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "head_dim": 16}
    counts = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    windows = {"sliding_window": 8, "attn_logit_softcapping": 2.0}
    config = transformers.Gemma2Config(**sizes, **counts, **windows, max_position_embeddings=64)
    transformers.Gemma2ForCausalLM(config).save_pretrained(tmp_path)
    found = explain({"device": "cpu", "model": str(tmp_path)})
    assert found.basis == LOADED
    questions = [part.question for part in parts(found, "attention")]
    assert len(questions) == 2
    assert "window 8, scores capped at 2" in questions[0]
    assert {part.kind for part in found.parts if part.chosen in ("cpu", "cpu-native")} <= {
        "sampler"
    }


def test_several_ranks_are_explained_without_starting_them() -> None:
    spec = PluginManager().select("cpu")
    capable = Capabilities(block_sizes=(32,), world_size=2)
    only = Only(changed(spec, capabilities=capable))
    found = explain({"tensor_parallel": 2}, only)
    [attention], [group] = parts(found, "attention"), parts(found, "communicator")
    assert attention.question.startswith("2 heads over 1 of 32")
    assert (group.question, group.note) == ("2 ranks", "when all ranks have met")
    with pytest.raises(ConfigError, match="needs as many devices, and there are 2"):
        explain({"tensor_parallel": 4}, only)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"block_size": 3}, UnsupportedError),
        ({"max_model_len": 10**6}, ConfigError),
        ({"no_such": 1}, ConfigError),
    ],
)
def test_what_cannot_be_started_cannot_be_explained(
    settings: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        explain({"device": "cpu", **settings})


# -- the command


def test_the_command_prints_settings_and_parts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "--device", "cpu", "--block-size", "16"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "embedded (LlamaForCausalLM) on cpu:0"
    assert any(line.split()[:3] == ["block_size", "16", "user"] for line in printed)
    assert f"Parts ({ON_SHAPES})" in printed
    assert "    1 rank: SoloCommunicator (engine.platform.comm)" in printed
    assert any("not reference: lower priority" in line for line in printed)


def test_the_command_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "--device", "cpu", "--json", "--quantization", "int8"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["possible"]
    assert {"quantization": "user"}.items() <= {
        one["name"]: one["decided_by"] for one in found["settings"]
    }.items()
    linear = [part for part in found["parts"] if part["kind"] == "linear"]
    assert linear
    assert all("quantization int8" in part["question"] for part in linear)


def test_the_environment_is_set_before_torch_is_imported() -> None:
    code = "import sys, engine.explain, engine.cli.explain; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ}
    )
    assert done.stdout == "False\n"
