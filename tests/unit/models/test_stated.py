"""Configurations that are believed as they stand mean to transformers what they mean to us."""

import json
import subprocess
import sys

import pytest
import transformers

from engine.models.architecture import resolve
from engine.models.declarations import DECLARATIONS
from engine.models.stated import StatedConfiguration

from .families import SIZES, make, save

CLASSES = {
    "LlamaForCausalLM": transformers.LlamaConfig,
    "MistralForCausalLM": transformers.MistralConfig,
    "Qwen2ForCausalLM": transformers.Qwen2Config,
    "Qwen3ForCausalLM": transformers.Qwen3Config,
    "GraniteForCausalLM": transformers.GraniteConfig,
    "MixtralForCausalLM": transformers.MixtralConfig,
}
#: As models on hubs leave them out, and as older versions spelled them.
VARIANTS = {
    "as saved": {},
    "tied": {"tie_word_embeddings": True},
    "biased": {"attention_bias": True, "mlp_bias": True},
    "own head size": {"head_dim": 16},
    "theta outside": {"rope_parameters": None, "rope_theta": 5e5},
    "theta outside, no scaling": {
        "rope_parameters": None,
        "rope_scaling": None,
        "rope_theta": 10000,
    },
    "sliding": {"sliding_window": 32},
    "not sliding": {"sliding_window": None, "use_sliding_window": False},
    "whole numbers": {"attention_multiplier": 2, "logits_scaling": 3},
}
LEFT_OUT = ("attention_bias", "mlp_bias", "tie_word_embeddings", "layer_types", "use_cache")
UNUSUAL = [
    {"model_type": "gemma"},
    {"auto_map": {"AutoConfig": "own.Config"}},
    {"quantization_config": {"bits": 4}},
    {"partial_rotary_factor": 0.5},
    {"hidden_size": None},
    {"hidden_size": 60},  # not a multiple of the heads
    {"vocab_size": 0},
    {"vocab_size": "96"},
    {"num_hidden_layers": True},
    {"rms_norm_eps": "1e-5"},
    {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}},
    {"rope_parameters": {"rope_type": "default"}},  # theta is the architecture's default
    {"rope_parameters": [1]},
    {"head_dim": 7},
]


def described(architecture, folder, **changes):
    """A config.json's content, written to the folder; None takes a key away."""
    config = CLASSES[architecture](**SIZES, architectures=[architecture])
    config.save_pretrained(folder)
    path = folder / "config.json"
    found = {**json.loads(path.read_text()), **changes}
    found = {key: value for key, value in found.items() if value is not None}
    path.write_text(json.dumps(found))
    return found


@pytest.mark.parametrize("architecture", sorted(CLASSES))
@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_it_means_what_transformers_says(architecture, variant, tmp_path):
    changes = VARIANTS[variant]
    content = described(architecture, tmp_path, **{**dict.fromkeys(LEFT_OUT), **changes})
    content |= {key: None for key, value in changes.items() if value is None}
    (tmp_path / "config.json").write_text(json.dumps(content))
    stated = StatedConfiguration.read(architecture, content)
    oracle = transformers.AutoConfig.from_pretrained(tmp_path)
    assert stated is not None
    declaration = DECLARATIONS[architecture]
    assert resolve(declaration, stated.to_dict()) == resolve(declaration, oracle.to_dict())
    assert stated.rope_parameters == oracle.rope_parameters == stated.to_dict()["rope_parameters"]


@pytest.mark.parametrize("architecture", sorted(CLASSES))
def test_a_default_that_is_the_architectures_own_is_left_to_transformers(architecture, tmp_path):
    """Whatever key is taken away: the meaning stays transformers', or nothing is said."""
    whole = described(architecture, tmp_path)
    declaration, num_left = DECLARATIONS[architecture], 0
    for key in whole:
        rest = {name: value for name, value in whole.items() if name != key}
        if (stated := StatedConfiguration.read(architecture, rest)) is None:
            num_left += 1
            continue
        (tmp_path / "config.json").write_text(json.dumps(rest))
        oracle = transformers.AutoConfig.from_pretrained(tmp_path)
        assert resolve(declaration, stated.to_dict()) == resolve(declaration, oracle.to_dict()), key
        assert stated.rope_parameters == oracle.rope_parameters
    assert num_left >= 9  # the sizes, the norm's epsilon, the activation and the model's type


@pytest.mark.parametrize("changes", UNUSUAL, ids=str)
def test_what_is_unusual_is_left_to_transformers(changes, tmp_path):
    content = described("LlamaForCausalLM", tmp_path)
    assert StatedConfiguration.read("LlamaForCausalLM", content) is not None
    assert StatedConfiguration.read("LlamaForCausalLM", {**content, **changes}) is None


def test_layers_of_two_kinds_are_left_to_transformers(tmp_path):
    content = described("Qwen2ForCausalLM", tmp_path)
    for changes in (
        {"use_sliding_window": True},
        {"layer_types": ["sliding_attention", *["full_attention"] * 2]},
    ):
        assert StatedConfiguration.read("Qwen2ForCausalLM", {**content, **changes}) is None


def test_an_ordinary_model_is_loaded_without_transformers(tmp_path):
    save(make("LlamaForCausalLM", **SIZES), tmp_path)
    program = (
        "import sys; from engine import LLM, SamplingParams;"
        "llm = LLM(sys.argv[1], device='cpu', num_blocks=8);"
        "llm.generate([[1, 2, 3]], SamplingParams(max_tokens=2));"
        "sys.exit('transformers' in sys.modules)"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    assert subprocess.run(command, check=False).returncode == 0
