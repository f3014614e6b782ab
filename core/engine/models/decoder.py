"""The one decoder: every declared architecture runs in it.

T tokens, W width, H query heads, K key/value heads, D head dim, R rotated dims, F feed-forward
width; H, K and F of this rank.

    embedding ─┬─ norm ─ attention ─┬─ norm ─ feed-forward or experts ─┬─ … ─ norm ─ output
               └──── residual ──────┴──────────── residual ────────────┘
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from engine.layers import (
    ColumnParallelLinear,
    Embedding,
    Mixture,
    RMSNorm,
    Rotary,
    RowParallelLinear,
    Site,
    TiedEmbedding,
)
from engine.models.architecture import Architecture
from engine.models.model import Attend, Model
from engine.models.weights import DecoderWeights, LayerWeights
from engine.platform.attention import AttentionSpec, Packed, Prologue


class Decoder(Model):
    """
    Args:
        weights: of this rank.
        rotary: built for the model's frequencies.
        layers: the model's, in order.
        specs: one a layer.
    """

    def __init__(
        self,
        weights: DecoderWeights,
        rotary: Rotary,
        layers: "list[DecoderLayer]",
        specs: list[AttentionSpec],
    ) -> None:
        model, site, vocab = weights.architecture, weights.site, weights.share.vocab
        split = len(vocab) < model.vocab_size
        self._embedding, self._output = _ends(weights, vocab.start if split else None)
        self._embedding_multiplier = model.embedding_multiplier
        self._rotary = rotary
        self._layers = layers
        self._specs = specs
        self._norm = RMSNorm(site, weights.final_norm(), model.norm_epsilon)
        self._logits_divisor = model.logits_divisor
        self.num_bytes = weights.checkpoint.num_bytes_read - site.tally.num_bytes_saved

    def attention_specs(self) -> list[AttentionSpec]:
        return list(self._specs)

    def prologues(self) -> list[Prologue | None]:
        return [layer.attention.prologue for layer in self._layers]

    def fuse(self, layers: Sequence[bool]) -> None:
        for layer, fused in zip(self._layers, layers, strict=True):
            layer.attention.fused = fused

    def forward(self, input_ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        angles = self._rotary.angles(positions)
        residual = scaled(self._embedding(input_ids), self._embedding_multiplier)
        addend: Tensor | None = None
        for layer in self._layers:
            addend, residual = layer(addend, residual, angles, attend)
        normed, _ = add_and_norm(self._norm, addend, residual)
        return normed

    def logits(self, hidden: Tensor) -> Tensor:
        return scaled(self._output(hidden), 1 / self._logits_divisor)


def _ends(
    weights: DecoderWeights, split_from: int | None
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """What turns ids into the first hidden states, and what turns the last ones into logits."""
    model, site = weights.architecture, weights.site
    if model.tied and split_from is None:
        tied = TiedEmbedding(site, weights.embedding())
        return tied, tied.logits
    embedding = weights.embedding()
    output = embedding if model.tied else weights.output()
    if model.tied:
        site.keep(embedding)
    return (
        Embedding(site, embedding, split_from=split_from),
        ColumnParallelLinear(site, output, gather=split_from is not None).logits,
    )


class DecoderLayer:
    def __init__(
        self, site: Site, model: Architecture, weights: LayerWeights, number: int, rotary: Rotary
    ) -> None:
        self._attention_norm = RMSNorm(site, weights.attention_norm(), model.norm_epsilon)
        self.attention = Attention(site, model, weights, number, rotary)
        self._feed_forward_norm = RMSNorm(site, weights.feed_forward_norm(), model.norm_epsilon)
        self._feed_forward = _feed_forward(site, model, weights)
        self._residual_multiplier = model.residual_multiplier

    def __call__(
        self,
        addend: Tensor | None,
        residual: Tensor,
        angles: tuple[Tensor, Tensor],
        attend: Attend,
    ) -> tuple[Tensor, Tensor]:
        """Of [T, W] each: what is still to be added to the residual, and the residual."""
        normed, residual = add_and_norm(self._attention_norm, addend, residual)
        addend = scaled(self.attention(normed, angles, attend), self._residual_multiplier)
        normed, residual = self._feed_forward_norm.add(addend, residual)
        return scaled(self._feed_forward(normed), self._residual_multiplier), residual


class Attention:
    """`fused`: the device does the prologue together with attention."""

    def __init__(
        self, site: Site, model: Architecture, weights: LayerWeights, number: int, rotary: Rotary
    ) -> None:
        share = weights.decoder.share
        self._number = number
        self._head_dim = model.head_dim
        self._heads = (len(share.heads), len(share.kv_heads), len(share.kv_heads))
        self._qkv = ColumnParallelLinear(site, *weights.qkv())
        self._head_norms = _head_norms(site, model, weights) if model.qk_norm else None
        self._rotary = rotary
        self._output = RowParallelLinear(site, *weights.attention_output())
        self.prologue = Prologue(
            rotary_dim=rotary.dim, norm_epsilon=model.norm_epsilon if model.qk_norm else None
        )
        self.fused = False

    def __call__(self, x_TW: Tensor, angles: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        qkv_TX = self._qkv(x_TW)
        if self.fused:
            norms = [norm.weight for norm in self._head_norms or ()]
            packed = Packed(qkv_TX, *angles, *norms)
            return self._output(attend.packed(self._number, packed, self.prologue).flatten(1))
        parts = torch.split(qkv_TX, [n * self._head_dim for n in self._heads], dim=-1)
        q_THD, k_TKD, v_TKD = (
            part.view(len(part), heads, self._head_dim)
            for part, heads in zip(parts, self._heads, strict=True)
        )
        if self._head_norms is not None:
            query_norm, key_norm = self._head_norms
            q_THD, k_TKD = query_norm(q_THD), key_norm(k_TKD)
        q_THD, k_TKD = self._rotary(q_THD, k_TKD, angles)
        return self._output(attend(self._number, q_THD, k_TKD, v_TKD).flatten(1))


def _head_norms(site: Site, model: Architecture, weights: LayerWeights) -> tuple[RMSNorm, RMSNorm]:
    return (
        RMSNorm(site, weights.query_norm(), model.norm_epsilon),
        RMSNorm(site, weights.key_norm(), model.norm_epsilon),
    )


class FeedForward:
    """down(activation(gate(x)) * up(x)), with gate and up in one matrix."""

    def __init__(self, site: Site, model: Architecture, weights: LayerWeights) -> None:
        self._gate_up = ColumnParallelLinear(site, *weights.gate_up())
        self._activate = site.choose(
            model.activation, width=len(weights.decoder.share.feed_forward)
        )
        self._down = RowParallelLinear(site, *weights.down())

    def __call__(self, x_TW: Tensor) -> Tensor:
        return self._down(self._activate(self._gate_up(x_TW)))


def _feed_forward(site: Site, model: Architecture, weights: LayerWeights) -> FeedForward | Mixture:
    if model.experts is None:
        return FeedForward(site, model, weights)
    return Mixture(
        site,
        weights.router(model.experts),
        weights.expert_gate_up(model.experts),
        weights.expert_down(model.experts),
        model.experts.active,
    )


def add_and_norm(norm: RMSNorm, addend: Tensor | None, residual: Tensor) -> tuple[Tensor, Tensor]:
    """Before the first layer there is nothing to add."""
    return (norm(residual), residual) if addend is None else norm.add(addend, residual)


def scaled(x: Tensor, factor: float) -> Tensor:
    return x if factor == 1.0 else x * factor
