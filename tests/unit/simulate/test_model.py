"""Counts of weights against transformers' own models, which are built without memory."""

import json
from pathlib import Path

import pytest
import torch
import transformers

from engine.config import EngineConfig
from engine.errors import ModelError
from engine.models import read_facts
from engine.simulate.model import ModelSize, read_size

SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": None,
}
FAMILIES = {
    "LlamaForCausalLM": {},
    "MistralForCausalLM": {"sliding_window": 32},
    "Qwen2ForCausalLM": {"tie_word_embeddings": True},
    "Qwen3ForCausalLM": {"head_dim": 16},
    "Phi3ForCausalLM": {},
    "GraniteForCausalLM": {"attention_bias": True, "mlp_bias": True},
    "MixtralForCausalLM": {"num_local_experts": 4, "num_experts_per_tok": 2},
}


def read(folder: Path) -> ModelSize:
    return read_size(read_facts(EngineConfig(model=str(folder))))


@pytest.mark.parametrize("architecture", FAMILIES)
def test_as_many_weights_are_counted_as_transformers_makes(
    architecture: str, tmp_path: Path
) -> None:
    model_class = getattr(transformers, architecture)
    config = model_class.config_class(**SIZES, **FAMILIES[architecture])
    with torch.device("meta"):
        model = model_class(config)
    config.architectures = [architecture]
    config.save_pretrained(tmp_path)
    size = read(tmp_path)
    assert size.weights == sum(one.numel() for one in model.parameters())
    head_dim = config.to_dict().get("head_dim") or 8
    assert size.kv == 2 * 3 * 2 * head_dim
    assert size.weight_bytes("bfloat16") == 2 * size.weights


def test_windows_are_told_by_layer(tmp_path: Path) -> None:
    config = transformers.MistralConfig(**SIZES, sliding_window=32)
    config.architectures = ["MistralForCausalLM"]
    config.save_pretrained(tmp_path)
    [windows] = read(tmp_path).windows
    assert (windows.tokens, windows.layers) == (32, 3)


def test_quantized_linear_layers_keep_norms_and_embedding_as_they_are(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(**SIZES)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(tmp_path)
    size = read(tmp_path)
    expected = (size.linear + size.output) / 2 + 2 * (size.embedding + size.other)
    assert size.weight_bytes("bfloat16", "int4") == expected


def test_a_configuration_that_does_not_say_enough_is_an_error(tmp_path: Path) -> None:
    config = transformers.GPT2Config(
        n_embd=32, n_layer=2, n_head=2, architectures=["GPT2LMHeadModel"]
    )
    config.save_pretrained(tmp_path)
    assert "n_embd" in json.loads((tmp_path / "config.json").read_text())
    with pytest.raises(ModelError, match=r"GPT2LMHeadModel.*predictions.*LlamaForCausalLM"):
        read(tmp_path)
