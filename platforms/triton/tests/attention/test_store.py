from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from paged_steps import FP8, spec_of
from torch import Tensor

from engine.ops import reference
from engine.platform import AttentionSpec, Packed
from engine.platform import Prologue as What
from engine_triton.architecture import Architecture
from engine_triton.attention.layout import DTYPES, KVFormat, block_shape
from engine_triton.attention.store import Prologue, Store

SLOTS = (37, -1, 0, 16, 15, -1, 79)
TOKENS, BLOCKS = len(SLOTS), 5


def empty(spec: AttentionSpec, form: KVFormat) -> Tensor:
    """A cache of 7 everywhere, which no test stores."""
    kept = FP8.get(form.write, form.memory)
    return torch.full((BLOCKS, *block_shape(spec)), 7.0).to(kept).view(form.memory)


def holding(spec: AttentionSpec, form: KVFormat, k_TKD: Tensor, v_TKD: Tensor) -> Tensor:
    """The cache after tokens were stored, by torch."""
    kept = FP8.get(form.write, form.memory)
    cache = empty(spec, form)
    for token, slot in enumerate(SLOTS):
        if slot >= 0:
            block, offset = divmod(slot, spec.block_size)
            for i, x in enumerate((k_TKD, v_TKD)):
                cache[block, i, :, offset] = x[token].to(kept).view(form.memory)
    return cache


def same(found: Tensor, right: Tensor, spec: AttentionSpec, form: KVFormat) -> bool:
    """To rounding of one place: sums of a norm may be added in another order."""
    kept = FP8.get(form.write, form.memory)
    one, other = found.view(kept).float(), right.view(kept).float()
    place = max(torch.finfo(kept).eps, torch.finfo(DTYPES[spec.dtype]).eps)
    return torch.allclose(one, other, rtol=2 * place, atol=place)


def rows(spec: AttentionSpec, heads: int, *, spread: float = 1.0) -> Tensor:
    random = torch.Generator().manual_seed(3)
    made = torch.randn(TOKENS, heads, spec.head_dim, generator=random) * spread
    return made.to(DTYPES[spec.dtype])


@pytest.mark.parametrize("head_dim", [32, 80])
@pytest.mark.parametrize(
    ("dtype", "kv_dtype"),
    [
        ("float32", "float32"),
        ("bfloat16", "bfloat16"),
        ("bfloat16", "float16"),
        ("bfloat16", "fp8_e4m3"),
        ("float32", "fp8_e5m2"),
    ],
)
def test_keys_and_values_go_to_their_slots_and_nowhere_else(
    architecture: Architecture, dtype: str, kv_dtype: str, head_dim: int
) -> None:
    """Of rows that are strided, as parts of a projection are."""
    spec = spec_of(dtype=dtype, kv_dtype=kv_dtype, head_dim=head_dim, num_kv_heads=3, num_heads=3)
    form = KVFormat.of(spec, architecture)
    both = rows(spec, 6)
    k_TKD, v_TKD = both[:, :3], both[:, 3:]
    cache = empty(spec, form)
    Store(spec, architecture, form)(k_TKD, v_TKD, torch.tensor(SLOTS), cache)
    right = holding(spec, form, k_TKD, v_TKD)
    assert torch.equal(cache.view(torch.uint8), right.view(torch.uint8))


def test_numbers_too_large_for_the_cache_saturate(architecture: Architecture) -> None:
    spec = spec_of(dtype="float32", kv_dtype="float16")
    form = KVFormat.of(spec, architecture)
    k_TKD, cache = rows(spec, 2, spread=1e6), empty(spec, form)
    Store(spec, architecture, form)(k_TKD, -k_TKD, torch.tensor(SLOTS), cache)
    right = k_TKD.clamp(-65504, 65504)
    assert torch.equal(cache, holding(spec, form, right, -right))


def projected(spec: AttentionSpec, rotary_dim: int) -> Packed:
    """A layer's projection, its rows wider than they need be."""
    heads = spec.num_heads + 2 * spec.num_kv_heads
    wide = rows(spec, heads + 1).flatten(1)
    random = torch.Generator().manual_seed(4)
    angles = torch.randn(TOKENS, rotary_dim // 2, generator=random)
    norms = [torch.rand(spec.head_dim, generator=random).to(wide.dtype) + 0.5 for _ in range(2)]
    return Packed(wide[:, : heads * spec.head_dim], angles.cos(), angles.sin(), *norms)


def one_by_one(spec: AttentionSpec, packed: Packed, epsilon: float | None) -> Sequence[Tensor]:
    """(q, k, v) [T, heads, D] by the reference operations."""
    counts = (spec.num_heads, spec.num_kv_heads, spec.num_kv_heads)
    parts = packed.qkv_TX.unflatten(1, (-1, spec.head_dim)).split(counts, 1)
    q, k, v = parts
    if epsilon is not None:
        assert packed.query_norm_D is not None
        assert packed.key_norm_D is not None
        q = reference.rms_norm(q, packed.query_norm_D, epsilon)
        k = reference.rms_norm(k, packed.key_norm_D, epsilon)
    return *reference.rotary(q, k, packed.cos_TR, packed.sin_TR), v


@pytest.mark.parametrize(("head_dim", "rotary_dim"), [(32, 32), (32, 8), (80, 80), (96, 40)])
@pytest.mark.parametrize("epsilon", [None, 1e-5])
def test_norm_rotary_and_store_in_one_are_what_they_are_one_by_one(
    architecture: Architecture, head_dim: int, rotary_dim: int, epsilon: float | None
) -> None:
    spec = spec_of(head_dim=head_dim, num_heads=6, dtype="bfloat16")
    check_prologue(architecture, spec, rotary_dim, epsilon)


@pytest.mark.parametrize(
    ("dtype", "kv_dtype"), [("float32", "float32"), ("float16", "fp8_e4m3"), ("float32", "float16")]
)
def test_every_format_of_the_cache(architecture: Architecture, dtype: str, kv_dtype: str) -> None:
    check_prologue(architecture, spec_of(dtype=dtype, kv_dtype=kv_dtype), 32, 1e-6)


def test_fp8_without_negative_zero(architecture: Architecture) -> None:
    spec = spec_of(dtype="bfloat16", kv_dtype="fp8_e4m3")
    check_prologue(replace(architecture, fp8="e4m3fnuz"), spec, 32, 1e-6)


def check_prologue(
    architecture: Architecture, spec: AttentionSpec, rotary_dim: int, epsilon: float | None
) -> None:
    form = KVFormat.of(spec, architecture)
    packed, cache = projected(spec, rotary_dim), empty(spec, form)
    if epsilon is None:
        packed = replace(packed, query_norm_D=None, key_norm_D=None)
    what = What(rotary_dim=rotary_dim, norm_epsilon=epsilon)
    found = Prologue(spec, architecture, form, what)(packed, torch.tensor(SLOTS), cache)
    q_THD, k_TKD, v_TKD = one_by_one(spec, packed, epsilon)
    assert same(cache, holding(spec, form, k_TKD, v_TKD), spec, form)
    place = torch.finfo(found.dtype).eps
    assert torch.allclose(found.float(), q_THD.float(), rtol=2 * place, atol=place)
