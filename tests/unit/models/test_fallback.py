"""Models of transformers that have no declaration, and those that cannot be served."""

import json

import pytest
import torch
import transformers
from transformers import dynamic_module_utils

from engine.errors import ModelError
from engine.models.fallback import Fallback
from engine.platform import SoloCommunicator

from .families import SIZES, expected_logits, load, make, save
from .oracle import Cache, run

OLD_SIZES = {
    "vocab_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "hidden_size": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
MIXTURE = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
FAMILIES = {
    "gpt2": (
        "GPT2LMHeadModel",
        {"vocab_size": 96, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 128}
        | {"bos_token_id": 1, "eos_token_id": 2, "scale_attn_by_inverse_layer_idx": True},
    ),
    "opt": (
        "OPTForCausalLM",
        OLD_SIZES
        | {"ffn_dim": 112, "max_position_embeddings": 128, "word_embed_proj_dim": 32}
        | {"pad_token_id": 1},
    ),
    "gemma2": (
        "Gemma2ForCausalLM",
        SIZES
        | {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 30}
        | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    ),
    "gemma3": (
        "Gemma3ForCausalLM",
        SIZES
        | {"head_dim": 16, "sliding_window": 8}
        | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    ),
    "gpt_neox": (
        "GPTNeoXForCausalLM",
        OLD_SIZES | {"intermediate_size": 112, "max_position_embeddings": 128},
    ),
    "cohere": ("CohereForCausalLM", SIZES | {"logit_scale": 0.9}),
    "deepseek, values narrower than keys": (
        "DeepseekV3ForCausalLM",
        SIZES
        | MIXTURE
        | {"num_key_value_heads": 8, "q_lora_rank": 32, "kv_lora_rank": 16}
        | {"qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16}
        | {"n_routed_experts": 4, "n_group": 1, "topk_group": 1},
    ),
}


@pytest.fixture(scope="module", params=FAMILIES.values(), ids=FAMILIES.keys())
def pair(request, tmp_path_factory):
    architecture, settings = request.param
    reference = make(architecture, **settings)
    model = load(save(reference, tmp_path_factory.mktemp("model")))
    assert isinstance(model, Fallback)
    return reference, model


def test_a_prompt_at_once_and_token_by_token_has_the_logits_of_transformers(pair):
    reference, model = pair
    tokens, cache = prompt(30), Cache()
    rows = [run(model, [(cache, tokens[:11])])[0]]
    rows += [run(model, [(cache, [token])])[0] for token in tokens[11:]]
    close(torch.cat(rows), expected_logits(reference, tokens))


def test_requests_side_by_side_in_uneven_parts_do_not_disturb_each_other(pair):
    reference, model = pair
    prompts = [prompt(25, seed=1), prompt(20, seed=2), prompt(14, seed=3)]
    caches, rows = [Cache(), Cache(), Cache()], [[], [], []]
    for cuts in ((1, 9, 4), (12, 1, 0), (1, 1, 1), (11, 9, 9)):
        parts = []
        for cache, tokens, count in zip(caches, prompts, cuts, strict=True):
            parts.append((cache, tokens[cache.length : cache.length + count]))
        for mine, logits in zip(rows, run(model, parts), strict=True):
            mine.append(logits)
    for mine, tokens in zip(rows, prompts, strict=True):
        close(torch.cat(mine), expected_logits(reference, tokens))


def test_specs_are_what_the_model_asks_for(tmp_path):
    architecture, settings = FAMILIES["gemma2"]
    specs = load(save(make(architecture, **settings), tmp_path)).attention_specs()
    assert [spec.window for spec in specs] == [8, None, 8]
    assert {(s.num_heads, s.num_kv_heads, s.head_dim) for s in specs} == {(8, 2, 16)}
    assert {(s.soft_cap, round(s.scale, 6)) for s in specs} == {(2.0, round(30**-0.5, 6))}


def test_the_weights_bytes_are_counted(tmp_path):
    architecture, settings = FAMILIES["gemma2"]
    reference = make(architecture, **settings)
    model = load(save(reference, tmp_path), dtype="bfloat16")
    weights = 2 * reference.num_parameters()
    assert weights <= model.num_bytes < 1.01 * weights, "all of them, and a few buffers"


def test_each_layer_may_have_its_own_scale(tmp_path):
    architecture, settings = FAMILIES["gpt2"]
    specs = load(save(make(architecture, **settings), tmp_path)).attention_specs()
    assert [spec.scale for spec in specs] == pytest.approx([1 / 4, 1 / 8, 1 / 12])


REFUSED = {
    "recurrent": (
        "Qwen3NextForCausalLM",
        SIZES | MIXTURE | {"head_dim": 16, "num_experts": 4},
        "recurrent state",
    ),
    "convolutions beside attention": (
        "Lfm2ForCausalLM",
        SIZES | {"layer_types": ["conv", "full_attention", "conv"]},
        "layers of the kind conv",
    ),
    "attention sinks": (
        "GptOssForCausalLM",
        SIZES
        | {"num_local_experts": 2, "num_experts_per_tok": 1, "head_dim": 8}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
        "asks for 's_aux'",
    ),
    "both directions": (
        "BertLMHeadModel",
        OLD_SIZES | {"intermediate_size": 64, "is_decoder": False},
        "not causal",
    ),
    "its own attention": (
        "GPTJForCausalLM",
        {"vocab_size": 96, "n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 8}
        | {"bos_token_id": 1, "eos_token_id": 2},
        "attention interface",
    ),
    "arguments that do not arrive": (
        "StableLmForCausalLM",
        SIZES,
        "does not hand our arguments on",
    ),
    "no explicit positions": (
        "BartForCausalLM",
        {"vocab_size": 96, "d_model": 64, "decoder_layers": 2, "decoder_attention_heads": 4}
        | {"decoder_ffn_dim": 64, "encoder_layers": 1, "encoder_attention_heads": 4}
        | {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "decoder_start_token_id": 2}
        | {"forced_eos_token_id": None},
        "takes no explicit positions",
    ),
    "an encoder": (
        "T5ForConditionalGeneration",
        {"vocab_size": 96, "d_model": 64, "num_layers": 2, "d_ff": 64, "num_heads": 4},
        "left to right",
    ),
    "no generator": (
        "BertForMaskedLM",
        OLD_SIZES | {"intermediate_size": 64},
        "left to right",
    ),
}


@pytest.mark.parametrize(
    ("architecture", "settings", "reason"), REFUSED.values(), ids=REFUSED.keys()
)
def test_what_cannot_be_served_is_refused_with_the_reason(architecture, settings, reason, tmp_path):
    folder = save(make(architecture, **settings), tmp_path)
    with pytest.raises(ModelError, match=reason) as caught:
        load(folder)
    assert "LlamaForCausalLM" in str(caught.value), "says what can be served"


def test_a_layer_that_looks_at_its_neighbours_is_found_out(tmp_path, monkeypatch):
    from transformers.models.gpt2.modeling_gpt2 import GPT2MLP

    def mixing(self, hidden):
        return hidden.cumsum(dim=1)

    architecture, settings = FAMILIES["gpt2"]
    folder = save(make(architecture, **settings), tmp_path)
    monkeypatch.setattr(GPT2MLP, "forward", mixing)
    with pytest.raises(ModelError, match="mixes neighbouring tokens"):
        load(folder)


def test_more_than_an_output_layer_after_the_decoder_is_found_out(tmp_path, monkeypatch):
    forward = transformers.GPT2LMHeadModel.forward

    def sensitive(self, input_ids=None, **options):
        output = forward(self, input_ids, **options)
        if input_ids is not None:
            output.logits = output.logits * 2
        return output

    architecture, settings = FAMILIES["gpt2"]
    folder = save(make(architecture, **settings), tmp_path)
    monkeypatch.setattr(transformers.GPT2LMHeadModel, "forward", sensitive)
    with pytest.raises(ModelError, match="gives other logits"):
        load(folder)


def test_missing_weights_are_no_reason_to_run_with_random_ones(tmp_path):
    architecture, settings = FAMILIES["opt"]
    reference = make(architecture, **settings)
    state = reference.state_dict()
    del state["model.decoder.layers.1.fc1.weight"]
    reference.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ModelError, match=r"lacks 1 weights.*layers\.1\.fc1\.weight"):
        load(tmp_path)


def test_it_is_not_divided_over_devices(tmp_path):
    class Two(SoloCommunicator):
        size = 2

    architecture, settings = FAMILIES["opt"]
    folder = save(make(architecture, **settings), tmp_path)
    with pytest.raises(ModelError, match="give it one device instead of 2"):
        load(folder, communicator=Two())


def test_code_from_the_models_folder_runs_only_where_it_is_trusted(tmp_path, monkeypatch):
    """A folder with its own model class, a Llama by another name."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", tmp_path / "code")
    monkeypatch.syspath_prepend(tmp_path / "code")
    folder = save(make("LlamaForCausalLM", **SIZES), tmp_path / "model")
    (folder / "own.py").write_text(
        "import transformers\n"
        "class OwnConfig(transformers.LlamaConfig):\n"
        "    model_type = 'own_llama'\n"
        "class OwnForCausalLM(transformers.LlamaForCausalLM):\n"
        "    config_class = OwnConfig\n"
    )
    described = json.loads((folder / "config.json").read_text())
    described |= {
        "architectures": ["OwnForCausalLM"],
        "model_type": "own_llama",
        "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"},
    }
    (folder / "config.json").write_text(json.dumps(described))
    with pytest.raises(ModelError, match="trust_remote_code"):
        load(folder)
    model = load(folder, trust_remote_code=True)
    reference = make("LlamaForCausalLM", **SIZES)
    close(run(model, [(Cache(), prompt(9))])[0], expected_logits(reference, prompt(9)))


def prompt(length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 96, (length,), generator=generator).tolist()


def close(got: torch.Tensor, wanted: torch.Tensor) -> None:
    assert wanted.std() > 0.05, "logits too flat to prove anything"
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=0)
