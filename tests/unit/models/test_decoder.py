"""Declared architectures against transformers: the same logits, however the tokens are cut."""

import pytest
import torch

from engine.models.decoder import Decoder

from .families import SIZES, expected_logits, load, make, save
from .oracle import Cache, run

LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1],
    "long_factor": [2.0, 5.5],
    "original_max_position_embeddings": 16,
}
FAMILIES = {
    "llama": ("LlamaForCausalLM", {}),
    "llama, tied": ("LlamaForCausalLM", {"tie_word_embeddings": True}),
    "llama, biases": ("LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True}),
    "llama, every head its own": ("LlamaForCausalLM", {"num_key_value_heads": 8}),
    "llama, one shared head": ("LlamaForCausalLM", {"num_key_value_heads": 1}),
    "llama, wide heads": ("LlamaForCausalLM", {"head_dim": 24}),
    "llama, gelu": ("LlamaForCausalLM", {"hidden_act": "gelu_pytorch_tanh"}),
    "llama, linear scaling": (
        "LlamaForCausalLM",
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5000.0}},
    ),
    "llama, dynamic scaling": (
        "LlamaForCausalLM",
        {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}},
    ),
    "llama, llama3 scaling": (
        "LlamaForCausalLM",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "mistral": ("MistralForCausalLM", {"sliding_window": 7}),
    "mistral, no window": ("MistralForCausalLM", {"sliding_window": None}),
    "qwen2": ("Qwen2ForCausalLM", {"tie_word_embeddings": True}),
    "qwen2, some windows": (
        "Qwen2ForCausalLM",
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "qwen2, yarn": (
        "Qwen2ForCausalLM",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "qwen3": ("Qwen3ForCausalLM", {"head_dim": 16}),
    "qwen3, biases": ("Qwen3ForCausalLM", {"head_dim": 16, "attention_bias": True}),
    "phi3": ("Phi3ForCausalLM", {"sliding_window": 9}),
    "phi3, half rotated": (
        "Phi3ForCausalLM",
        {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
            }
        },
    ),
    "phi3, past its original length": (
        "Phi3ForCausalLM",
        {
            "original_max_position_embeddings": 16,
            "rope_parameters": {**LONGROPE, "partial_rotary_factor": 0.5, "rope_theta": 10000.0},
        },
    ),
    "granite": (
        "GraniteForCausalLM",
        {
            "attention_multiplier": 0.2,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.6,
            "logits_scaling": 1.7,
            "attention_bias": True,
        },
    ),
    "mixtral": ("MixtralForCausalLM", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "mixtral, a window, one expert": (
        "MixtralForCausalLM",
        {"num_local_experts": 3, "num_experts_per_tok": 1, "sliding_window": 6},
    ),
}


@pytest.fixture(scope="module", params=FAMILIES.values(), ids=FAMILIES.keys())
def pair(request, tmp_path_factory):
    architecture, settings = request.param
    reference = make(architecture, **(SIZES | settings))
    model = load(save(reference, tmp_path_factory.mktemp("model")))
    assert isinstance(model, Decoder)
    return reference, model


def test_a_prompt_at_once_has_the_logits_of_transformers(pair):
    reference, model = pair
    tokens = prompt(40)
    close(run(model, [(Cache(), tokens)])[0], expected_logits(reference, tokens))


def test_a_device_that_does_the_prologue_of_every_layer_has_the_same_logits(pair):
    reference, model = pair
    tokens, prologues = prompt(24), model.prologues()
    model.fuse([True] * len(prologues))
    try:
        close(run(model, [(Cache(), tokens)])[0], expected_logits(reference, tokens))
    finally:
        model.fuse([False] * len(prologues))


def test_token_by_token_has_the_logits_of_transformers(pair):
    reference, model = pair
    tokens, cache = prompt(30), Cache()
    rows = [run(model, [(cache, [token])])[0] for token in tokens]
    close(torch.cat(rows), expected_logits(reference, tokens))


def test_requests_side_by_side_in_uneven_parts_do_not_disturb_each_other(pair):
    reference, model = pair
    prompts = [prompt(33, seed=1), prompt(20, seed=2), prompt(27, seed=3)]
    caches, rows = [Cache(), Cache(), Cache()], [[], [], []]
    for cuts in ((1, 9, 4), (12, 1, 0), (1, 1, 1), (19, 9, 22)):
        parts = []
        for cache, tokens, count in zip(caches, prompts, cuts, strict=True):
            parts.append((cache, tokens[cache.length : cache.length + count]))
        for mine, logits in zip(rows, run(model, parts), strict=True):
            mine.append(logits)
    for mine, tokens in zip(rows, prompts, strict=True):
        close(torch.cat(mine), expected_logits(reference, tokens))


def test_phi3_within_its_original_length_uses_the_short_factors(tmp_path):
    _, settings = FAMILIES["phi3, past its original length"]
    reference = make("Phi3ForCausalLM", **(SIZES | settings))
    tokens = prompt(16)
    model = load(save(reference, tmp_path), max_model_len=16)
    close(run(model, [(Cache(), tokens)])[0], expected_logits(reference, tokens))


def test_specs_say_what_each_layer_attends_to(tmp_path):
    settings = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}
    specs = load(save(make("Qwen2ForCausalLM", **(SIZES | settings)), tmp_path)).attention_specs()
    assert [spec.window for spec in specs] == [None, 5, 5]
    assert {(s.num_heads, s.num_kv_heads, s.head_dim, s.block_size) for s in specs} == {
        (8, 2, 8, 16)
    }
    assert {(s.dtype, s.kv_dtype, s.scale) for s in specs} == {("float32", "float32", 8**-0.5)}


def test_an_activation_without_an_operation_runs_through_transformers(tmp_path):
    reference = make("LlamaForCausalLM", **(SIZES | {"hidden_act": "relu"}))
    model = load(save(reference, tmp_path))
    assert not isinstance(model, Decoder)
    close(run(model, [(Cache(), prompt(12))])[0], expected_logits(reference, prompt(12)))


def test_the_weights_bytes_are_counted_once(tmp_path):
    settings = SIZES | {"tie_word_embeddings": True}
    reference = make("LlamaForCausalLM", **settings)
    folder = save(reference, tmp_path)
    assert load(folder).num_bytes == 4 * reference.num_parameters()
    assert load(folder, dtype="bfloat16").num_bytes == 2 * reference.num_parameters()


def test_weights_and_activations_take_the_dtype_that_is_asked_for(tmp_path):
    reference = make("LlamaForCausalLM", **SIZES)
    model = load(save(reference, tmp_path), dtype="bfloat16")
    tokens = torch.tensor(prompt(4))
    hidden = model.forward(tokens, torch.arange(4), lambda layer, q, k, v: q)
    assert hidden.dtype == torch.bfloat16
    assert model.logits(hidden).dtype == torch.float32


def prompt(length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 96, (length,), generator=generator).tolist()


def close(got: torch.Tensor, wanted: torch.Tensor) -> None:
    assert wanted.std() > 0.05, "logits too flat to prove anything"
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=0)
