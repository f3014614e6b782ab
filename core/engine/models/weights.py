"""A decoder's weights, read from a checkpoint: fused and of one rank only.

W width, H query heads, K key/value heads, D head dim, F feed-forward width, E experts,
V vocabulary; H, K, F and V of this rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from engine.layers import Site
from engine.models.architecture import Architecture, Experts
from engine.models.checkpoint import Checkpoint, Piece
from engine.models.share import Share

Linear: TypeAlias = tuple[Tensor, Tensor | None]  # weight and bias


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    checkpoint: Checkpoint
    architecture: Architecture
    share: Share
    site: Site

    def embedding(self) -> Tensor:
        """[V, W]"""
        return self._vocabulary(self.architecture.names.embedding)

    def output(self) -> Tensor:
        """[V, W]"""
        return self._vocabulary(self.architecture.names.output)

    def final_norm(self) -> Tensor:
        """[W]"""
        name = self.architecture.names.final_norm
        return self.read([Piece(f"{name}.weight", (self.architecture.width,))])

    def layer(self, number: int) -> "LayerWeights":
        return LayerWeights(self, self.architecture.names.layer.format(number))

    def _vocabulary(self, name: str) -> Tensor:
        shape = (self.architecture.vocab_size, self.architecture.width)
        return self.read([Piece(f"{name}.weight", shape, self.share.vocab)])

    def read(self, pieces: Sequence[Piece]) -> Tensor:
        """The pieces one below the other, in the site's dtype and on its device."""
        return self.checkpoint.read(pieces, self.site.dtype, self.site.device)


@dataclass(frozen=True, slots=True)
class LayerWeights:
    decoder: DecoderWeights
    prefix: str

    def attention_norm(self) -> Tensor:
        """[W]"""
        return self._norm(self._model.names.attention_norm, self._model.width)

    def feed_forward_norm(self) -> Tensor:
        """[W]"""
        return self._norm(self._model.names.feed_forward_norm, self._model.width)

    def query_norm(self) -> Tensor:
        """[D]"""
        return self._norm(self._model.names.q_norm, self._model.head_dim)

    def key_norm(self) -> Tensor:
        """[D]"""
        return self._norm(self._model.names.k_norm, self._model.head_dim)

    def qkv(self) -> Linear:
        """[(H + 2 K) D, W]: queries, keys, values."""
        model, share = self._model, self._share
        parts = [
            (model.num_heads * model.head_dim, _scaled(share.heads, model.head_dim)),
            (model.num_kv_heads * model.head_dim, _scaled(share.kv_heads, model.head_dim)),
            (model.num_kv_heads * model.head_dim, _scaled(share.kv_heads, model.head_dim)),
        ]
        return self._column_parallel(model.names.qkv, parts, model.qkv_bias)

    def attention_output(self) -> Linear:
        """[W, H D]"""
        model = self._model
        inner = model.num_heads * model.head_dim
        mine = _scaled(self._share.heads, model.head_dim)
        return self._row_parallel(
            model.names.attention_output, inner, mine, model.attention_output_bias
        )

    def gate_up(self) -> Linear:
        """[2 F, W]: gate, up."""
        model = self._model
        part = (model.feed_forward_width, self._share.feed_forward)
        return self._column_parallel(model.names.gate_up, [part, part], model.feed_forward_bias)

    def down(self) -> Linear:
        """[W, F]"""
        model = self._model
        return self._row_parallel(
            model.names.down,
            model.feed_forward_width,
            self._share.feed_forward,
            model.feed_forward_bias,
        )

    def router(self, experts: Experts) -> Tensor:
        """[E, W], whole on every rank."""
        names, shape = experts.names, (experts.count, self._model.width)
        name = names.stacked_router if self._stacked(experts) else names.router
        return self.decoder.read([Piece(f"{self.prefix}{name}.weight", shape)])

    def expert_gate_up(self, experts: Experts) -> Tensor:
        """[E, 2 F, W]"""
        inner, width, mine = (
            self._model.feed_forward_width,
            self._model.width,
            self._share.feed_forward,
        )
        names, pieces = experts.names, []
        for one in range(experts.count):
            if self._stacked(experts):
                name, shape = self.prefix + names.stacked_gate_up, (experts.count, 2 * inner, width)
                halves = (mine, _shifted(mine, inner))
                pieces.append([Piece(name, shape, rows, at=one) for rows in halves])
            else:
                paths = [
                    f"{self.prefix}{name.format(one)}.weight" for name in (names.gate, names.up)
                ]
                pieces.append([Piece(path, (inner, width), mine) for path in paths])
        return self._stack(pieces, (2 * len(mine), width))

    def expert_down(self, experts: Experts) -> Tensor:
        """[E, W, F]"""
        inner, width, mine = (
            self._model.feed_forward_width,
            self._model.width,
            self._share.feed_forward,
        )
        pieces = []
        for one in range(experts.count):
            if self._stacked(experts):
                name, shape = (
                    self.prefix + experts.names.stacked_down,
                    (experts.count, width, inner),
                )
                pieces.append([Piece(name, shape, columns=mine, at=one)])
            else:
                name = f"{self.prefix}{experts.names.down.format(one)}.weight"
                pieces.append([Piece(name, (width, inner), columns=mine)])
        return self._stack(pieces, (width, len(mine)))

    @property
    def _model(self) -> Architecture:
        return self.decoder.architecture

    @property
    def _share(self) -> Share:
        return self.decoder.share

    def _stacked(self, experts: Experts) -> bool:
        return self.prefix + experts.names.stacked_gate_up in self.decoder.checkpoint

    def _stack(self, pieces: list[list[Piece]], shape: tuple[int, int]) -> Tensor:
        site = self.decoder.site
        target = torch.empty((len(pieces), *shape), dtype=site.dtype, device=site.device)
        for one, parts in zip(target, pieces, strict=True):
            self.decoder.checkpoint.read_into(one, parts)
        return target

    def _norm(self, name: str, width: int) -> Tensor:
        return self.decoder.read([Piece(f"{self.prefix}{name}.weight", (width,))])

    def _column_parallel(
        self, names: tuple[str, ...], parts: list[tuple[int, range]], biased: bool
    ) -> Linear:
        """Parts of (rows in all, this rank's), each under its own name or fused under one."""
        places, start = [], 0
        total = sum(rows for rows, _ in parts)
        for number, (rows, mine) in enumerate(parts):
            fused = len(names) == 1
            name = self.prefix + names[0 if fused else number]
            places.append((name, total if fused else rows, _shifted(mine, start if fused else 0)))
            start += rows
        width = self._model.width
        weight = [Piece(f"{name}.weight", (rows, width), mine) for name, rows, mine in places]
        bias = [Piece(f"{name}.bias", (rows,), mine) for name, rows, mine in places]
        return self.decoder.read(weight), self.decoder.read(bias) if biased else None

    def _row_parallel(self, name: str, inner: int, mine: range, biased: bool) -> Linear:
        width, path = self._model.width, self.prefix + name
        weight = Piece(f"{path}.weight", (width, inner), columns=mine)
        bias = Piece(f"{path}.bias", (width,))
        return self.decoder.read([weight]), self.decoder.read([bias]) if biased else None


def _shifted(part: range, offset: int) -> range:
    return range(offset + part.start, offset + part.stop)


def _scaled(heads: range, head_dim: int) -> range:
    """The rows of these heads."""
    return range(heads.start * head_dim, heads.stop * head_dim)
