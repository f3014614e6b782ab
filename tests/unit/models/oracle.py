"""Attention over dense float32 keys and values of each request: obvious, and slow."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from fusing import unpack
from torch import Tensor

from engine.models.model import Model
from engine.platform import AttentionSpec, Packed, Prologue


@dataclass
class Cache:
    """One request's keys and values so far, by layer."""

    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)
    length: int = 0


def run(model: Model, parts: Sequence[tuple[Cache, Sequence[int]]]) -> list[Tensor]:
    """One step that computes some next tokens of several requests. Logits [tokens, V] of each."""
    specs = model.attention_specs()
    counts = [len(tokens) for _, tokens in parts]

    def attend(layer: int, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor) -> Tensor:
        assert q_THD.shape[1:] == (specs[layer].num_heads, specs[layer].head_dim)
        assert k_TKD.shape == v_TKD.shape
        assert k_TKD.shape[1:] == (specs[layer].num_kv_heads, specs[layer].head_dim)
        split = zip(q_THD.split(counts), k_TKD.split(counts), v_TKD.split(counts), strict=True)
        results = [
            _attend_one(specs[layer], cache, layer, *qkv)
            for (cache, _), qkv in zip(parts, split, strict=True)
        ]
        return torch.cat(results)

    def packed(layer: int, packed: Packed, prologue: Prologue) -> Tensor:
        return attend(layer, *unpack(specs[layer], packed, prologue))

    attend.packed = packed  # type: ignore[attr-defined]
    ids = torch.tensor([token for _, tokens in parts for token in tokens])
    positions = torch.cat([torch.arange(c.length, c.length + len(t)) for c, t in parts])
    with torch.inference_mode():
        logits = model.logits(model.forward(ids, positions, attend))
    for cache, tokens in parts:
        cache.length += len(tokens)
    return list(logits.split(counts))


def _attend_one(
    spec: AttentionSpec, cache: Cache, layer: int, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor
) -> Tensor:
    if layer in cache.keys:
        k_TKD = torch.cat((cache.keys[layer], k_TKD))
        v_TKD = torch.cat((cache.values[layer], v_TKD))
    cache.keys[layer], cache.values[layer] = k_TKD, v_TKD
    group = spec.num_heads // spec.num_kv_heads
    keys = k_TKD.float().repeat_interleave(group, dim=1)
    values = v_TKD.float().repeat_interleave(group, dim=1)
    scores = torch.einsum("thd,shd->hts", q_THD.float(), keys) * spec.scale
    if spec.soft_cap is not None:
        scores = spec.soft_cap * torch.tanh(scores / spec.soft_cap)
    asking = torch.arange(len(k_TKD) - len(q_THD), len(k_TKD)).unsqueeze(1)
    asked = torch.arange(len(k_TKD)).unsqueeze(0)
    hidden = asked > asking
    if spec.window is not None:
        hidden |= asked <= asking - spec.window
    likely = scores.masked_fill(hidden, float("-inf")).softmax(dim=-1)
    return torch.einsum("hts,shd->thd", likely, values).to(q_THD.dtype)
