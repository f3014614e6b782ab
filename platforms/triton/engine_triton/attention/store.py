"""A step's keys and values into the cache; and what comes before, in the same kernel.

`Store` writes keys and values as they are. `Prologue` takes the rows of a layer's projection, and
does what operations `rms_norm` and `rotary` do to queries and keys on the way: one kernel in place
of three, and nothing is written twice. Tokens with a negative slot are not stored.

A program has some rows: a row is one head of one token, heads of a token side by side.

T tokens, H query heads, K key/value heads, D head dim, R rotated part of it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.platform import AttentionSpec, Packed
from engine.platform import Prologue as PrologueSpec
from engine_triton.architecture import Architecture
from engine_triton.attention.layout import DTYPES, KVFormat
from engine_triton.attention.numbers import encoded


class Store:
    def __init__(self, spec: AttentionSpec, architecture: Architecture, form: KVFormat) -> None:
        launch = architecture.launch("attention_store", head_dim=spec.head_dim)
        self._rows = launch.blocks["ROWS"]
        self._constants = {
            **launch.blocks,
            **launch.options,
            "NUM_KV_HEADS": spec.num_kv_heads,
            "HEAD_DIM": spec.head_dim,
            "HEAD_PAD": triton.next_power_of_2(spec.head_dim),
            "BLOCK_SIZE": spec.block_size,
            "FORMAT": form.write,
        }

    def __call__(self, k_TKD: Tensor, v_TKD: Tensor, slots: Tensor, cache: Tensor) -> None:
        """`cache` as it was allocated; a head's numbers lie side by side in k and v."""
        rows = slots.shape[0] * self._constants["NUM_KV_HEADS"]
        store_kernel[(-(-rows // self._rows),)](
            k_TKD,
            v_TKD,
            cache,
            slots,
            k_TKD.stride(0),
            k_TKD.stride(1),
            v_TKD.stride(0),
            v_TKD.stride(1),
            rows,
            **self._constants,
        )


class Prologue:
    """Of one kind of layer: `what` it does to its queries and keys."""

    def __init__(
        self, spec: AttentionSpec, architecture: Architecture, form: KVFormat, what: PrologueSpec
    ) -> None:
        self._spec = spec
        self._epsilon = what.norm_epsilon
        launch = architecture.launch("attention_prologue", head_dim=spec.head_dim)
        self._rows = launch.blocks["ROWS"]
        half, rest = what.rotary_dim // 2, spec.head_dim - what.rotary_dim
        self._constants = {
            **launch.blocks,
            **launch.options,
            "NUM_HEADS": spec.num_heads,
            "NUM_KV_HEADS": spec.num_kv_heads,
            "HEAD_DIM": spec.head_dim,
            "HEAD_PAD": triton.next_power_of_2(spec.head_dim),
            "HALF": half,
            "HALF_PAD": triton.next_power_of_2(half),
            "REST_PAD": triton.next_power_of_2(rest) if rest else 0,
            "BLOCK_SIZE": spec.block_size,
            "FORMAT": form.write,
            "NORM": what.norm_epsilon is not None,
        }

    def __call__(self, packed: Packed, slots: Tensor, cache: Tensor) -> Tensor:
        """The rotated queries [T, H, D]; `cache` as it was allocated."""
        spec, tokens = self._spec, slots.shape[0]
        qkv, cos, sin = packed.qkv_TX, packed.cos_TR.contiguous(), packed.sin_TR.contiguous()
        qkv = qkv if qkv.stride(1) == 1 else qkv.contiguous()
        q_THD = torch.empty(
            tokens, spec.num_heads, spec.head_dim, dtype=DTYPES[spec.dtype], device=qkv.device
        )
        # Without norms nothing reads the weights.
        weights = (packed.query_norm_D, packed.key_norm_D)
        query_norm, key_norm = (cos if one is None else one for one in weights)
        query_programs = -(-tokens * spec.num_heads // self._rows)
        key_programs = -(-tokens * spec.num_kv_heads // self._rows)
        prologue_kernel[(query_programs + 2 * key_programs,)](
            qkv,
            cos,
            sin,
            query_norm,
            key_norm,
            q_THD,
            cache,
            slots,
            qkv.stride(0),
            tokens,
            query_programs,
            key_programs,
            self._epsilon or 0.0,
            **self._constants,
        )
        return q_THD


@triton.jit
def cache_lines(
    slots, BLOCK_SIZE: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr
):
    """Where tokens' keys of head 0 lie in a cache."""
    block, offset = slots // BLOCK_SIZE, slots % BLOCK_SIZE
    return (block * (2 * NUM_KV_HEADS * BLOCK_SIZE) + offset) * HEAD_DIM


@triton.jit(do_not_specialize=["num_rows"])
def store_kernel(
    k,  # [T, K, D]
    v,
    cache,  # [blocks, 2, K, S, D]
    slots,  # [T] int64
    k_stride,
    k_head_stride,
    v_stride,
    v_head_stride,
    num_rows,  # T*K
    ROWS: tl.constexpr,  # of one program
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_PAD: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    FORMAT: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token, head = rows // NUM_KV_HEADS, rows % NUM_KV_HEADS
    slot = tl.load(slots + token, mask=rows < num_rows, other=-1)
    columns = tl.arange(0, HEAD_PAD)[None, :]
    real = (slot >= 0)[:, None] & (columns < HEAD_DIM)
    token, head = token.to(tl.int64)[:, None], head[:, None]
    line = cache_lines(slot, BLOCK_SIZE, NUM_KV_HEADS, HEAD_DIM)[:, None]
    at = cache + line + head * (BLOCK_SIZE * HEAD_DIM) + columns
    dtype: tl.constexpr = cache.dtype.element_ty
    key = tl.load(k + token * k_stride + head * k_head_stride + columns, mask=real, other=0.0)
    value = tl.load(v + token * v_stride + head * v_head_stride + columns, mask=real, other=0.0)
    tl.store(at, encoded(key.to(tl.float32), FORMAT, dtype), mask=real)
    at += NUM_KV_HEADS * BLOCK_SIZE * HEAD_DIM
    tl.store(at, encoded(value.to(tl.float32), FORMAT, dtype), mask=real)


@triton.jit(do_not_specialize=["num_tokens", "query_programs", "key_programs"])
def prologue_kernel(
    qkv,  # [T, (H + 2K) * D]
    cos,  # [T, R/2] float32
    sin,
    query_norm,  # [D]
    key_norm,
    q,  # [T, H, D]
    cache,  # [blocks, 2, K, S, D]
    slots,  # [T] int64
    row_stride,
    num_tokens,
    query_programs,
    key_programs,
    epsilon,
    ROWS: tl.constexpr,  # of one program
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_PAD: tl.constexpr,
    HALF: tl.constexpr,
    HALF_PAD: tl.constexpr,
    REST_PAD: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    FORMAT: tl.constexpr,
    NORM: tl.constexpr,
):
    """The first programs have rows of queries, the next ones of keys, the last ones of values."""
    HEAD: tl.constexpr = BLOCK_SIZE * HEAD_DIM  # from one head to the next, in a cache
    program = tl.program_id(0)
    if program < query_programs:
        rows = program * ROWS + tl.arange(0, ROWS)
        token, head = (rows // NUM_HEADS).to(tl.int64), rows % NUM_HEADS
        real = token < num_tokens
        at = qkv + token * row_stride + head * HEAD_DIM
        to = q + rows.to(tl.int64) * HEAD_DIM
        turned(
            at, to, query_norm, cos, sin, token, real, epsilon, "plain",
            HEAD_DIM, HALF, HALF_PAD, REST_PAD, NORM,
        )  # fmt: skip
        return
    program -= query_programs
    values = program >= key_programs
    program -= tl.where(values, key_programs, 0)
    rows = program * ROWS + tl.arange(0, ROWS)
    token, head = (rows // NUM_KV_HEADS).to(tl.int64), rows % NUM_KV_HEADS
    slot = tl.load(slots + token, mask=token < num_tokens, other=-1)
    real = slot >= 0
    at = qkv + token * row_stride + (NUM_HEADS + head) * HEAD_DIM
    to = cache + cache_lines(slot, BLOCK_SIZE, NUM_KV_HEADS, HEAD_DIM) + head * HEAD
    if values:
        columns = tl.arange(0, HEAD_PAD)[None, :]
        inner = real[:, None] & (columns < HEAD_DIM)
        value = tl.load(at[:, None] + NUM_KV_HEADS * HEAD_DIM + columns, mask=inner, other=0.0)
        value = encoded(value.to(tl.float32), FORMAT, cache.dtype.element_ty)
        tl.store(to[:, None] + NUM_KV_HEADS * HEAD + columns, value, mask=inner)
    else:
        turned(
            at, to, key_norm, cos, sin, token, real, epsilon, FORMAT,
            HEAD_DIM, HALF, HALF_PAD, REST_PAD, NORM,
        )  # fmt: skip


@triton.jit
def turned(
    at,  # of each row's head in the projection, [ROWS]
    to,
    weight,
    cos,
    sin,
    token,
    real,  # rows there are, [ROWS]
    epsilon,
    FORMAT: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    HALF_PAD: tl.constexpr,
    REST_PAD: tl.constexpr,
    NORM: tl.constexpr,
):
    """Norm and rotary of heads, in float32 and rounded where the operations round.

    A head is its first half x, its second half y, and what is not rotated, z.
    """
    dtype: tl.constexpr = at.dtype.element_ty
    stored: tl.constexpr = to.dtype.element_ty
    half = tl.arange(0, HALF_PAD)
    rest = 2 * HALF + tl.arange(0, REST_PAD if REST_PAD else 1)
    in_half, in_rest = half < HALF, rest < HEAD_DIM
    inner, outer = real[:, None] & in_half[None, :], real[:, None] & in_rest[None, :]
    at_half, at_rest = at[:, None] + half[None, :], at[:, None] + rest[None, :]
    x = tl.load(at_half, mask=inner, other=0.0).to(tl.float32)
    y = tl.load(at_half + HALF, mask=inner, other=0.0).to(tl.float32)
    z = tl.load(at_rest, mask=outer, other=0.0).to(tl.float32)
    if NORM:
        square = tl.sum(x * x + y * y, 1) + tl.sum(z * z, 1)
        scale = tl.rsqrt(square / HEAD_DIM + epsilon)[:, None]
        x_weight = tl.load(weight + half, mask=in_half, other=0.0).to(tl.float32)
        y_weight = tl.load(weight + HALF + half, mask=in_half, other=0.0).to(tl.float32)
        x = (x * scale * x_weight[None, :]).to(dtype).to(tl.float32)
        y = (y * scale * y_weight[None, :]).to(dtype).to(tl.float32)
    at_angle = token[:, None] * HALF + half[None, :]
    c = tl.load(cos + at_angle, mask=inner, other=0.0)
    s = tl.load(sin + at_angle, mask=inner, other=0.0)
    first = (x * c - y * s).to(dtype).to(tl.float32)
    second = (y * c + x * s).to(dtype).to(tl.float32)
    to_half = to[:, None] + half[None, :]
    tl.store(to_half, encoded(first, FORMAT, stored), mask=inner)
    tl.store(to_half + HALF, encoded(second, FORMAT, stored), mask=inner)
    if REST_PAD:
        if NORM:
            z_weight = tl.load(weight + rest, mask=in_rest, other=0.0).to(tl.float32)
            z = (z * scale * z_weight[None, :]).to(dtype).to(tl.float32)
        tl.store(to[:, None] + rest[None, :], encoded(z, FORMAT, stored), mask=outer)
