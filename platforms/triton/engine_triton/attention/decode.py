"""Attention of requests with one row: split among programs, then merged.

Each program takes one key/value head of one request and a share of its keys, with the query heads
of the group as rows of its matrix products (flash-decoding: Dao et al., 2023). How many shares a
request has is decided on the device from its length: a captured graph serves any. A request of one
share is written at once; programs beyond a request's shares leave nothing behind.

N requests, H query heads, K key/value heads, G = H/K, D head dim, P parts (splits).
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.platform import AttentionSpec
from engine_triton.architecture import Architecture
from engine_triton.attention.layout import KVFormat
from engine_triton.attention.numbers import operand
from engine_triton.attention.tiles import (
    attend,
    divided,
    key_rows,
    key_tile,
    scaled_for,
    store_rows,
)


@dataclass(frozen=True, slots=True)
class DecodePlan:
    """Of the first `requests` requests of a step. `parts` and `weights` are None without splits."""

    requests: int
    splits: int  # the most parts of one request
    parts: Tensor | None  # [N, P, H, D] float32: each part's result
    weights: Tensor | None  # [N, P, H] float32: log2 of each part's sum of weights


class Decode:
    """Launches the kernels below for one spec on one architecture."""

    def __init__(self, spec: AttentionSpec, architecture: Architecture, form: KVFormat) -> None:
        self._group = spec.num_heads // spec.num_kv_heads
        facts = {
            "head_dim": spec.head_dim,
            "group": self._group,
            "block_size": spec.block_size,
            "kv_bytes": form.memory.itemsize,
            "bytes": 4 if spec.dtype == "float32" else 2,
        }
        launch = architecture.launch("attention_decode", **facts)
        merge = architecture.launch("attention_merge", **facts)
        blocks = dict(launch.blocks)
        self._spec = spec
        self._scale = scaled_for(spec.scale, spec.soft_cap, form.factor)
        self._most_splits = merge.blocks["MOST_SPLITS"]
        self._programs = architecture.processors * blocks.pop("WAVES")
        self._least_tokens = blocks["LEAST_TILES"] * blocks["BLOCK_N"]
        heads_a_tile = min(blocks["BLOCK_M"], self._group)
        self._tiles = -(-self._group // heads_a_tile) * spec.num_kv_heads
        shared = {
            "WINDOW": spec.window,
            "HEAD_DIM": spec.head_dim,
            "LEAST_TILES": blocks["LEAST_TILES"],
            "BLOCK_N": blocks["BLOCK_N"],
        }
        self._constants = {
            **blocks,
            **shared,
            **launch.options,
            "NUM_KV_HEADS": spec.num_kv_heads,
            "GROUP": self._group,
            "HEADS": heads_a_tile,
            "HEAD_PAD": max(16, triton.next_power_of_2(spec.head_dim)),
            "BLOCK_SIZE": spec.block_size,
            "SOFT_CAP": spec.soft_cap,
            "FORMAT": form.read,
            "COMPUTE": form.compute,
            "FACTOR": form.factor,
        }
        self._merge = {**merge.blocks, **shared, **merge.options, "NUM_HEADS": spec.num_heads}

    def plan(self, requests: int, max_length: int, device: torch.device) -> DecodePlan:
        """Enough parts to occupy the device, and none so short that merging costs more."""
        spec = self._spec
        reach = max_length if spec.window is None else min(max_length, spec.window)
        wanted = self._programs // max(1, requests * self._tiles)
        splits = max(1, min(wanted, -(-reach // self._least_tokens), self._most_splits))
        if splits == 1:
            return DecodePlan(requests, 1, None, None)
        rows = (requests, splits, spec.num_heads)
        parts = torch.empty(*rows, spec.head_dim, dtype=torch.float32, device=device)
        return DecodePlan(requests, splits, parts, torch.empty_like(parts[..., 0]))

    def __call__(
        self,
        q_THD: Tensor,
        cache: Tensor,
        block_table: Tensor,
        lengths: Tensor,
        plan: DecodePlan,
        out_THD: Tensor,
    ) -> None:
        """Writes the first `plan.requests` rows of `out_THD`; `cache` as kernels read it."""
        split = plan.parts is not None and plan.weights is not None
        parts, weights = (plan.parts, plan.weights) if split else (out_THD, out_THD)
        decode_kernel[(self._tiles, plan.requests, plan.splits)](
            q_THD,
            cache,
            out_THD,
            parts,
            weights,
            block_table,
            lengths,
            self._scale,
            q_THD.stride(0),
            q_THD.stride(1),
            block_table.stride(0),
            plan.splits,
            SPLIT=split,
            **self._constants,
        )
        if split:
            dims = -(-self._spec.head_dim // self._merge["BLOCK_D"])
            merge_kernel[(self._spec.num_heads, plan.requests, dims)](
                out_THD, parts, weights, lengths, plan.splits, **self._merge
            )


@triton.jit
def share_of(
    length, splits, WINDOW: tl.constexpr, BLOCK_N: tl.constexpr, LEAST_TILES: tl.constexpr
):
    """(first token seen, first tile, tiles, tiles a part) of the last of `length` tokens."""
    first = 0
    if WINDOW is not None:
        first = tl.maximum(length - WINDOW, 0)
    first_tile = first // BLOCK_N
    tiles = tl.cdiv(length, BLOCK_N) - first_tile
    parts = tl.minimum(splits, tl.cdiv(tiles, LEAST_TILES))
    return first, first_tile, tiles, tl.cdiv(tiles, tl.maximum(parts, 1))


@triton.jit(do_not_specialize=["table_stride", "splits"])
def decode_kernel(
    q,  # [T, H, D]
    cache,  # [blocks, 2, K, S, D]
    out,  # [T, H, D]
    parts,  # [N, P, H, D] float32
    weights,  # [N, P, H] float32
    block_table,
    lengths,
    scale,
    q_stride,
    head_stride,
    table_stride,
    splits,
    SPLIT: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEADS: tl.constexpr,  # of a group, in one program
    HEAD_DIM: tl.constexpr,
    HEAD_PAD: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    FORMAT: tl.constexpr,
    COMPUTE: tl.constexpr,
    FACTOR: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    LEAST_TILES: tl.constexpr,
):
    kv_head = tl.program_id(0) % NUM_KV_HEADS
    request = tl.program_id(1)
    split = tl.program_id(2)
    length = tl.load(lengths + request)
    start, first_tile, tiles, each = share_of(length, splits, WINDOW, BLOCK_N, LEAST_TILES)
    first = first_tile + split * each
    last = tl.minimum(first + each, first_tile + tiles)
    if (split > 0) & (first >= last):
        return

    rows = tl.arange(0, BLOCK_M)
    places = tl.program_id(0) // NUM_KV_HEADS * HEADS + rows
    heads = kv_head * GROUP + places
    columns = tl.arange(0, HEAD_PAD)
    real = ((rows < HEADS) & (places < GROUP))[:, None] & (columns < HEAD_DIM)[None, :]
    at = q + request.to(tl.int64) * q_stride + heads[:, None] * head_stride + columns[None, :]
    query = operand(tl.load(at, mask=real, other=0.0), COMPUTE)

    highest, total, sums = _attend_tiles(
        query, first, last, start, length, cache, kv_head, block_table, request, table_stride,
        scale, NUM_KV_HEADS, HEAD_DIM, HEAD_PAD, BLOCK_SIZE, SOFT_CAP, FORMAT, COMPUTE,
        BLOCK_M, BLOCK_N,
    )  # fmt: skip
    result = divided(sums, total, FACTOR)
    if SPLIT:
        several = tiles > each
        lines = (request.to(tl.int64) * splits + split) * (NUM_KV_HEADS * GROUP) + heads
        store_rows(parts, lines, result, real & several, HEAD_DIM, HEAD_PAD)
        logs = highest + tl.log2(tl.where(total > 0, total, 1.0))
        tl.store(weights + lines, logs, mask=(rows < HEADS) & (places < GROUP) & several)
        real = real & (tiles <= each)
    lines = request.to(tl.int64) * (NUM_KV_HEADS * GROUP) + heads
    store_rows(out, lines, result, real, HEAD_DIM, HEAD_PAD)


@triton.jit
def _attend_tiles(
    query, first, last, start, length, cache, kv_head, block_table, request, table_stride, scale,
    NUM_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, HEAD_PAD: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, SOFT_CAP: tl.constexpr, FORMAT: tl.constexpr, COMPUTE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """(highest [M], total [M], sums [M, D]) of `attend` over tiles first:last.

    Of their tokens, `query` [M, D] sees start:length.
    """
    BLOCK_STRIDE: tl.constexpr = 2 * NUM_KV_HEADS * BLOCK_SIZE * HEAD_DIM
    keys = cache + kv_head * (BLOCK_SIZE * HEAD_DIM)
    values = keys + NUM_KV_HEADS * BLOCK_SIZE * HEAD_DIM
    table = block_table + request.to(tl.int64) * table_stride
    highest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    sums = tl.zeros([BLOCK_M, HEAD_PAD], tl.float32)
    for tile in range(first, last):
        tokens = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        seen = (tokens >= start) & (tokens < length)
        lines = key_rows(table, tile * BLOCK_N, length, BLOCK_SIZE, BLOCK_STRIDE, HEAD_DIM, BLOCK_N)
        k = key_tile(keys, lines, seen, FORMAT, COMPUTE, HEAD_DIM, HEAD_PAD, True)
        v = key_tile(values, lines, seen, FORMAT, COMPUTE, HEAD_DIM, HEAD_PAD, True)
        highest, total, sums = attend(
            query, k, v, highest, total, sums, seen[None, :], scale, SOFT_CAP, True
        )
    return highest, total, sums


@triton.jit(do_not_specialize=["splits"])
def merge_kernel(
    out,  # [T, H, D]
    parts,  # [N, P, H, D] float32
    weights,  # [N, P, H] float32
    lengths,
    splits,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_N: tl.constexpr,
    LEAST_TILES: tl.constexpr,
    MOST_SPLITS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Adds up the parts that a request has, each by its share of the weights."""
    head = tl.program_id(0)
    request = tl.program_id(1)
    length = tl.load(lengths + request)
    _, _, tiles, each = share_of(length, splits, WINDOW, BLOCK_N, LEAST_TILES)
    if tiles <= each:
        return  # one part, which was written as the result
    index = tl.arange(0, MOST_SPLITS)
    used = index < tl.cdiv(tiles, each)
    columns = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    real = columns < HEAD_DIM
    line = (request.to(tl.int64) * splits + index) * NUM_HEADS + head
    logs = tl.load(weights + line, mask=used, other=float("-inf"))
    shares = tl.exp2(logs - tl.max(logs, 0))
    places = parts + line[:, None] * HEAD_DIM + columns[None, :]
    found = tl.load(places, mask=used[:, None] & real[None, :], other=0.0)
    result = tl.sum(found * (shares / tl.sum(shares, 0))[:, None], 0)
    at = out + (request.to(tl.int64) * NUM_HEADS + head) * HEAD_DIM + columns
    tl.store(at, result.to(out.dtype.element_ty), mask=real)
