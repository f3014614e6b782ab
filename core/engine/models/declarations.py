"""Every architecture the decoder runs. A new family is a few lines here."""

from collections.abc import Mapping
from types import MappingProxyType

from engine.models.architecture import Declaration, ExpertNames, WeightNames

LLAMA = Declaration(
    qkv_bias="attention_bias",
    attention_output_bias="attention_bias",
    feed_forward_bias="mlp_bias",
)
MISTRAL = Declaration(windows="all")
QWEN2 = Declaration(qkv_bias=True, windows="layer_types")
QWEN3 = Declaration(
    qkv_bias="attention_bias",
    attention_output_bias="attention_bias",
    qk_norm=True,
    windows="layer_types",
)
PHI3 = Declaration(
    names=WeightNames(qkv=("self_attn.qkv_proj",), gate_up=("mlp.gate_up_proj",)), windows="all"
)
GRANITE = Declaration(
    qkv_bias="attention_bias",
    attention_output_bias="attention_bias",
    feed_forward_bias="mlp_bias",
    attention_scale="attention_multiplier",
    embedding_multiplier="embedding_multiplier",
    residual_multiplier="residual_multiplier",
    logits_divisor="logits_scaling",
)
MIXTRAL = Declaration(expert_names=ExpertNames(), windows="all")

#: By the name in config.json's "architectures".
DECLARATIONS: Mapping[str, Declaration] = MappingProxyType(
    {
        "LlamaForCausalLM": LLAMA,
        "MistralForCausalLM": MISTRAL,
        "Qwen2ForCausalLM": QWEN2,
        "Qwen3ForCausalLM": QWEN3,
        "Phi3ForCausalLM": PHI3,
        "GraniteForCausalLM": GRANITE,
        "MixtralForCausalLM": MIXTRAL,
    }
)
