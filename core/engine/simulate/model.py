"""What a model weighs and computes, from its config.json alone.

Every count is of numbers, not of bytes, where the name does not say bytes.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from engine.errors import ModelError
from engine.facts import ModelFacts
from engine.models.architecture import Architecture, Declaration, resolve
from engine.models.configuration import complete_configuration
from engine.models.declarations import DECLARATIONS

#: Bytes of one number.
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float8": 1, "int8": 1}
#: Bytes of one weight of a quantized linear layer; its scales are not worth counting.
QUANTIZED_BYTES = {"int8": 1.0, "int4": 0.5, "fp8": 1.0}


@dataclass(frozen=True, slots=True)
class Windows:
    """Layers that see equally far back: `tokens` before and including their own, None: all."""

    tokens: int | None
    layers: int


@dataclass(frozen=True, slots=True)
class ModelSize:
    """Counts of numbers, of the whole model."""

    linear: int  # in linear layers that every token goes through, the output layer apart
    expert: int  # in one expert, over all layers
    experts: int  # of a layer; 0: none
    active_experts: int  # that a token goes through
    output: int  # in the output layer
    embedding: int  # in the input embedding, where it is not the output layer
    other: int  # norms, biases, routers
    width: int
    vocab_size: int
    heads: int
    kv_heads: int
    head_dim: int
    layers: int
    windows: tuple[Windows, ...]
    layer_activations: int  # that one token's way through a layer writes and reads

    @property
    def weights(self) -> int:
        together = self.linear + self.expert * self.experts + self.output + self.embedding
        return together + self.other

    @property
    def kv_per_layer(self) -> int:
        """Numbers that one token keeps in the cache of one layer."""
        return 2 * self.kv_heads * self.head_dim

    @property
    def kv(self) -> int:
        """Numbers that one token keeps in the cache."""
        return self.layers * self.kv_per_layer

    def weight_bytes(self, dtype: str, quantization: str | None = None) -> float:
        """Of all weights as they are kept. Quantization is of linear layers; a tied embedding is
        kept beside its quantized output layer."""
        width = DTYPE_BYTES[dtype]
        if quantization is None:
            return self.weights * width
        narrow = self.linear + self.expert * self.experts + self.output
        kept = self.embedding or self.output
        return narrow * QUANTIZED_BYTES[quantization] + (kept + self.other) * width


def read_size(facts: ModelFacts, *, trust_remote_code: bool = False) -> ModelSize:
    """
    Raises:
        ModelError: config.json does not say enough.
    """
    config = complete_configuration(
        Path(facts.path), facts.architecture, trust_remote_code=trust_remote_code
    ).to_dict()
    declaration = DECLARATIONS.get(facts.architecture, Declaration())
    try:
        return size(resolve(declaration, config))
    except KeyError as error:
        raise ModelError(
            f"config.json of {facts.name} ({facts.architecture}) has no {error.args[0]!r} that"
            f" predictions could be made from; they work for {', '.join(sorted(DECLARATIONS))}"
        ) from error


def size(model: Architecture) -> ModelSize:
    """Of a model whose architecture is known in full."""
    width, inner = model.width, model.feed_forward_width
    rows = (model.num_heads + 2 * model.num_kv_heads) * model.head_dim
    attended = model.num_heads * model.head_dim
    attention, feed_forward = width * (rows + attended), 3 * width * inner
    vocabulary = model.vocab_size * width
    layers, experts = model.num_layers, model.experts
    return ModelSize(
        linear=layers * (attention + (feed_forward if experts is None else 0)),
        expert=0 if experts is None else layers * feed_forward,
        experts=0 if experts is None else experts.count,
        active_experts=0 if experts is None else experts.active,
        output=vocabulary,
        embedding=0 if model.tied else vocabulary,
        other=width + layers * _others(model),
        width=width,
        vocab_size=model.vocab_size,
        heads=model.num_heads,
        kv_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        layers=layers,
        windows=tuple(Windows(*one) for one in Counter(model.windows).items()),
        # in and out of qkv, attention's output, gate and up, down; two norms that add the residual
        layer_activations=(width + rows)
        + (attended + width)
        + (experts.active if experts else 1) * (width + 4 * inner + width)
        + 2 * 4 * width,
    )


def _others(model: Architecture) -> int:
    """Of one layer: norms, biases, the router."""
    attended = model.num_heads * model.head_dim
    count = 2 * model.width + (2 * model.head_dim if model.qk_norm else 0)
    if model.qkv_bias:
        count += attended + 2 * model.num_kv_heads * model.head_dim
    if model.attention_output_bias:
        count += model.width
    if model.feed_forward_bias:
        count += 2 * model.feed_forward_width + model.width
    if model.experts is not None:
        count += model.experts.count * model.width
    return count
