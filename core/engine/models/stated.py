"""Configurations that state all that the decoder reads, as today's models do.

transformers has the defaults of every architecture, but to import it takes seconds: longer than a
small model takes to load. So a config.json is believed where it leaves nothing to a default that
differs between architectures; whatever is unusual about it goes through transformers instead, which
knows all spellings and has the errors.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: By architecture: the "model_type" that must go with it, and keys whose defaults are its own.
_KINDS: Mapping[str, tuple[str, frozenset[str]]] = {
    "LlamaForCausalLM": ("llama", frozenset()),
    "MistralForCausalLM": ("mistral", frozenset({"num_key_value_heads", "sliding_window"})),
    "Qwen2ForCausalLM": ("qwen2", frozenset({"num_key_value_heads"})),
    "Qwen3ForCausalLM": ("qwen3", frozenset({"num_key_value_heads", "head_dim"})),
    "GraniteForCausalLM": (
        "granite",
        frozenset(
            {
                "attention_multiplier",
                "embedding_multiplier",
                "residual_multiplier",
                "logits_scaling",
            }
        ),
    ),
    "MixtralForCausalLM": (
        "mixtral",
        frozenset({"num_key_value_heads", "num_local_experts", "num_experts_per_tok"}),
    ),
}
_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
)
#: Equal in all these architectures.
_DEFAULTS: Mapping[str, Any] = {
    "num_key_value_heads": None,
    "head_dim": None,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "sliding_window": None,
}
#: What is stated must be of this kind, or else transformers says what is wrong with it.
_TYPES: Mapping[str, tuple[type, ...]] = {
    **dict.fromkeys(_SIZES, (int,)),
    **dict.fromkeys(("num_key_value_heads", "head_dim", "sliding_window"), (int, type(None))),
    **dict.fromkeys(("num_local_experts", "num_experts_per_tok"), (int,)),
    **dict.fromkeys(("tie_word_embeddings", "attention_bias", "mlp_bias"), (bool,)),
    **dict.fromkeys(
        (
            "attention_multiplier",
            "embedding_multiplier",
            "residual_multiplier",
            "logits_scaling",
        ),
        (int, float),
    ),
    "rms_norm_eps": (float,),
    "hidden_act": (str,),
}
#: Each changes what other keys mean.
_UNUSUAL = frozenset(
    {"auto_map", "quantization_config", "text_config", "per_layer_config", "partial_rotary_factor"}
)


@dataclass(frozen=True, slots=True)
class StatedConfiguration:
    """The same as transformers' `PretrainedConfig` in the keys that the decoder reads."""

    rope_parameters: Mapping[str, Any]
    values: Mapping[str, Any]

    @classmethod
    def read(cls, architecture: str, described: Mapping[str, Any]) -> "StatedConfiguration | None":
        """Of a config.json's content; None where only transformers can tell what it means."""
        if architecture not in _KINDS or described.keys() & _UNUSUAL:
            return None
        kind, own = _KINDS[architecture]
        needed = {*_SIZES, "rms_norm_eps", "hidden_act", *own}
        rope = _rope_parameters(described)
        layers = _layer_types(described)
        if described.get("model_type") != kind or not needed <= described.keys():
            return None
        if rope is None or layers is None or not _plausible(described):
            return None
        values = {**_DEFAULTS, **described, **layers, "rope_parameters": rope}
        if values["num_key_value_heads"] is None:
            values["num_key_value_heads"] = values["num_attention_heads"]
        return cls(rope, values)

    def to_dict(self) -> dict[str, Any]:
        return dict(self.values)


def _plausible(described: Mapping[str, Any]) -> bool:
    for key, kinds in _TYPES.items():
        if key not in described:
            continue
        value = described[key]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            return False
        if isinstance(value, int) and not isinstance(value, bool) and value < 1:
            return False
    heads: int = described["num_attention_heads"]
    divisible: bool = described["hidden_size"] % heads == 0
    head_dim = described.get("head_dim") or described["hidden_size"] // heads
    return divisible and head_dim % 2 == 0


def _rope_parameters(described: Mapping[str, Any]) -> dict[str, Any] | None:
    """None unless the rotation is the plain one and its theta is stated."""
    stated = described.get("rope_parameters") or described.get("rope_scaling") or {}
    if not isinstance(stated, dict) or not stated.keys() <= {"rope_type", "rope_theta"}:
        return None
    theta = stated.get("rope_theta", described.get("rope_theta"))
    if isinstance(theta, bool) or not isinstance(theta, int | float) or theta <= 0:
        return None
    kind = stated.get("rope_type", "default")
    return {"rope_theta": theta, "rope_type": kind} if kind == "default" else None


def _layer_types(described: Mapping[str, Any]) -> dict[str, Any] | None:
    """None if layers differ in what they see."""
    if described.get("use_sliding_window", False) is not False:
        return None
    layers = described.get("num_hidden_layers")
    full = ["full_attention"] * layers if isinstance(layers, int) else []
    stated = described.get("layer_types")
    if stated is None:
        return {"layer_types": full}
    return {} if stated == full else None
