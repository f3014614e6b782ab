"""How model families differ, as data: a declaration of each, and one model's own answers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from engine.errors import ModelError

ACTIVATIONS = {"silu": "silu_and_multiply", "gelu_pytorch_tanh": "gelu_tanh_and_multiply"}
ROTARY_KINDS = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightNames:
    """Where a family's checkpoints keep their weights.

    `layer` goes before the names of a layer, `{}` being its number. Names have no ".weight" or
    ".bias". Where a tuple has one name, its parts lie fused in that one matrix, in order.
    """

    embedding: str = "model.embed_tokens"
    final_norm: str = "model.norm"
    output: str = "lm_head"
    layer: str = "model.layers.{}."
    attention_norm: str = "input_layernorm"
    qkv: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    q_norm: str = "self_attn.q_norm"
    k_norm: str = "self_attn.k_norm"
    attention_output: str = "self_attn.o_proj"
    feed_forward_norm: str = "post_attention_layernorm"
    gate_up: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    down: str = "mlp.down_proj"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertNames:
    """Where the experts of a layer are: each on its own (`{}` is its number), or all stacked.

    Stacks have the shapes [E, 2F, W] and [E, W, F]; their names stand alone, without ".weight".
    """

    router: str = "block_sparse_moe.gate"
    gate: str = "block_sparse_moe.experts.{}.w1"
    up: str = "block_sparse_moe.experts.{}.w3"
    down: str = "block_sparse_moe.experts.{}.w2"
    stacked_router: str = "mlp.gate"
    stacked_gate_up: str = "mlp.experts.gate_up_proj"
    stacked_down: str = "mlp.experts.down_proj"


@dataclass(frozen=True, slots=True, kw_only=True)
class Declaration:
    """A family. Where an answer is a string, the key of that name in config.json gives it."""

    names: WeightNames = WeightNames()
    expert_names: ExpertNames | None = None  # None: no experts
    qkv_bias: bool | str = False
    attention_output_bias: bool | str = False
    feed_forward_bias: bool | str = False
    qk_norm: bool = False  # of each head's query and key, before the rotation
    windows: Literal["none", "all", "layer_types"] = "none"  # which layers see a sliding window
    attention_scale: str | None = None  # None: 1 / sqrt(head_dim)
    embedding_multiplier: str | None = None
    residual_multiplier: str | None = None  # of what a layer adds to the residual
    logits_divisor: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    names: ExpertNames
    count: int
    active: int  # a token


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """One model's answers. Sizes are the whole model's, over all ranks."""

    names: WeightNames
    experts: Experts | None
    vocab_size: int
    width: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    feed_forward_width: int  # of one expert, where there are experts
    activation: str  # the operation's name
    norm_epsilon: float
    tied: bool  # the output layer is the embedding
    qkv_bias: bool
    attention_output_bias: bool
    feed_forward_bias: bool
    qk_norm: bool
    windows: tuple[int | None, ...]  # one a layer
    attention_scale: float
    embedding_multiplier: float
    residual_multiplier: float
    logits_divisor: float

    @property
    def num_layers(self) -> int:
        return len(self.windows)


def expressible(declaration: Declaration, config: Mapping[str, Any]) -> bool:
    """Whether the decoder has a part for everything that `config` may choose."""
    known = ACTIVATIONS if declaration.expert_names is None else {"silu"}
    return config["hidden_act"] in known and config["rope_parameters"]["rope_type"] in ROTARY_KINDS


def resolve(declaration: Declaration, config: Mapping[str, Any]) -> Architecture:
    """Ask `config`, the complete configuration with its defaults, for a declaration's answers.

    Raises:
        ModelError: its numbers cannot be those of a model.
    """
    heads: int = config["num_attention_heads"]
    kv_heads: int = config["num_key_value_heads"] or heads
    if heads % kv_heads:
        raise ModelError(
            f"config.json has {heads} attention heads for {kv_heads} key/value heads; the first "
            "must be a multiple of the second"
        )
    head_dim: int = config.get("head_dim") or config["hidden_size"] // heads

    def flag(answer: bool | str) -> bool:
        return bool(config[answer]) if isinstance(answer, str) else answer

    def factor(key: str | None, default: float = 1.0) -> float:
        return default if key is None else float(config[key])

    return Architecture(
        names=declaration.names,
        experts=_experts(declaration, config),
        vocab_size=config["vocab_size"],
        width=config["hidden_size"],
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        feed_forward_width=config["intermediate_size"],
        activation=ACTIVATIONS[config["hidden_act"]],
        norm_epsilon=config["rms_norm_eps"],
        tied=config["tie_word_embeddings"],
        qkv_bias=flag(declaration.qkv_bias),
        attention_output_bias=flag(declaration.attention_output_bias),
        feed_forward_bias=flag(declaration.feed_forward_bias),
        qk_norm=declaration.qk_norm,
        windows=_windows(declaration, config),
        attention_scale=factor(declaration.attention_scale, head_dim**-0.5),
        embedding_multiplier=factor(declaration.embedding_multiplier),
        residual_multiplier=factor(declaration.residual_multiplier),
        logits_divisor=factor(declaration.logits_divisor),
    )


def _experts(declaration: Declaration, config: Mapping[str, Any]) -> Experts | None:
    if declaration.expert_names is None:
        return None
    return Experts(
        names=declaration.expert_names,
        count=config["num_local_experts"],
        active=config["num_experts_per_tok"],
    )


def _windows(declaration: Declaration, config: Mapping[str, Any]) -> tuple[int | None, ...]:
    layers: int = config["num_hidden_layers"]
    if declaration.windows == "none":
        return (None,) * layers
    window: int | None = config["sliding_window"]
    if declaration.windows == "all":
        return (window,) * layers
    kinds: list[str] = config["layer_types"]
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)
