import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from simulated import PROFILE

from engine.assemble import assemble
from engine.cli import main
from engine.config import DeviceChoice
from engine.errors import CapacityError, UnsupportedError
from engine.platform import (
    Capabilities,
    DeviceProfile,
    PlatformSpec,
    ShapeBuckets,
    StepLimits,
    Validation,
)
from engine.plugins import PluginManager
from engine.runner.model_runner import ModelRunner
from engine.simulate.plan import make_plan, prefill_seconds
from engine.simulate.target import Target, accuracy, find_target
from engine.testing.null import NullPlatform, null_spec

GIB = 2**30
LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "attention_bias": False,
    "mlp_bias": False,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"},
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}


class Only(PluginManager):
    """Selects the null platform with this profile, whatever is installed."""

    def __init__(self, profile: DeviceProfile | None, **changes: Any) -> None:
        super().__init__({})
        self._spec = replace(null_spec(), profile=lambda device: profile, **changes)

    def select(self, device: DeviceChoice | str) -> PlatformSpec:
        return self._spec


BIG = replace(
    PROFILE, memory_bytes=64 * GIB, bandwidth=1e12, flops={"bfloat16": 1e14, "float32": 1e13}
)


def target(profile: DeviceProfile | None = BIG, **settings: Any) -> Target:
    return find_target({"dtype": "bfloat16", **settings}, Only(profile))


@pytest.fixture
def llama_8b(tmp_path: Path) -> str:
    """A folder with nothing but config.json."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    return str(tmp_path)


def test_the_ledger_is_that_of_an_engine_which_is_really_loaded() -> None:
    settings = {"model": "embedded", "device": "cpu", "num_blocks": 50, "max_requests": 8}
    engine = assemble(settings)
    try:
        runner = engine.loop.runner
        assert isinstance(runner, ModelRunner)
        real = runner.ledger
    finally:
        engine.close()
    planned = make_plan(find_target(settings)).ledger
    assert real is not None
    assert planned.weights == real.weights
    assert (planned.kv, planned.num_blocks, planned.block_size) == (
        real.kv,
        real.num_blocks,
        real.block_size,
    )
    assert planned.total == real.total


def test_an_eight_billion_model_needs_what_everybody_knows(llama_8b: str) -> None:
    plan = make_plan(target(model=llama_8b))
    assert plan.ledger.weights == 8_030_261_248 * 2
    assert plan.kv_token_bytes == 128 * 1024
    assert plan.max_context == 131072
    assert plan.speed is not None
    # All weights but the input embedding are read for each token.
    floor = (8_030_261_248 - 128256 * 4096) * 2 / 1e12
    assert floor < 1 / plan.speed.stream_tokens_per_s < 1.1 * floor + 0.001
    assert plan.speed.batch_tokens_per_s > 10 * plan.speed.stream_tokens_per_s


def test_the_context_is_what_fits(llama_8b: str) -> None:
    small = replace(BIG, memory_bytes=20 * GIB)
    plan = make_plan(target(small, model=llama_8b, memory_fraction=1.0, max_requests=8))
    tokens = plan.ledger.num_blocks * plan.ledger.block_size
    assert plan.max_context == tokens < 131072
    assert plan.max_context_requests == 1
    assert plan.ledger.kv + plan.ledger.weights + plan.ledger.activations <= 20 * GIB


def test_a_model_that_does_not_fit_is_an_error_with_numbers(llama_8b: str) -> None:
    with pytest.raises(CapacityError, match="use a smaller model"):
        make_plan(target(replace(BIG, memory_bytes=8 * GIB), model=llama_8b))


def test_ranks_share_weights_and_cache(llama_8b: str) -> None:
    four = replace(Capabilities(dtypes=("bfloat16",), kv_dtypes=("bfloat16",)), world_size=4)

    class Wide(NullPlatform):
        capabilities = four

    plugins = Only(BIG, create=Wide)
    plan = make_plan(find_target({"model": llama_8b, "tensor_parallel": 4}, plugins))
    assert plan.ledger.weights == 8_030_261_248 * 2 // 4
    assert plan.kv_token_bytes == 32 * 1024


def test_without_a_profile_there_is_a_ledger_and_a_reason() -> None:
    found = target(None)
    plan = make_plan(found)
    assert plan.speed is None
    assert plan.why_no_speed == (
        "platform 'null' has no profile of what its device can do in a second, so speed cannot be"
        " predicted for it"
    )
    assert plan.ledger.num_blocks > 0
    with pytest.raises(UnsupportedError, match="no profile"):
        found.time_model()


def test_static_shapes_are_predicted_as_they_are_padded(llama_8b: str) -> None:
    class Static(NullPlatform):
        capabilities = replace(NullPlatform.capabilities, static_shapes=True)

        def buckets(self, limits: StepLimits) -> ShapeBuckets:
            return ShapeBuckets.doubling(limits)

    settings = {"model": llama_8b, "dtype": "bfloat16"}
    padded = make_plan(find_target(settings, Only(BIG, create=Static))).speed
    exact = make_plan(target(model=llama_8b)).speed
    assert padded is not None
    assert exact is not None
    assert padded.ttft_s > 1.1 * exact.ttft_s


def test_a_prompt_is_computed_in_steps_that_the_settings_allow() -> None:
    model = target().time_model()
    whole, cut = prefill_seconds(model, 1000, 1000), prefill_seconds(model, 1000, 300)
    assert whole < cut < whole + 4 * prefill_seconds(model, 1, 1)


def test_predictions_say_how_far_earlier_ones_were_off() -> None:
    assert accuracy(None) == accuracy(BIG) == "never validated on this device"
    validation = Validation(models="a model", median_error=0.123, worst_error=0.5)
    said = accuracy(replace(BIG, validation=validation))
    assert said == "validated on round with a model: median error 12%, worst 50%"


def test_the_command_prints_a_plan_and_writes_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "plan.json"
    assert main(["plan", "embedded", "--device", "cpu", "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "KV cache" in printed
    assert printed.count("predicted; ") == 3
    written = json.loads(path.read_text())
    assert written["device"] == "cpu"
    assert written["ledger"]["num_blocks"] > 0
    assert written["speed"]["stream_tokens_per_s"] > 0


def test_predicting_imports_no_torch() -> None:
    modules = ("cost", "fleet", "leap", "model", "plan", "plot", "replica", "report", "target")
    lines = [f"import engine.simulate.{name}" for name in modules]
    check = "import sys; assert 'torch' not in sys.modules; assert 'matplotlib' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", "\n".join([*lines, check])], check=False)
    assert done.returncode == 0
