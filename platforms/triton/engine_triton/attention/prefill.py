"""Attention of requests with several rows: causal tiles over a ragged batch.

The rows of one program are some consecutive tokens of one request, each with the query heads that
share one key/value head, so a short chunk fills a tile as well as a long prompt. A program finds
its request in a list of work, made on the device once a step and used by every layer; the list's
length is an upper bound that the host knows, so nothing waits for the device.

N requests, T tokens, H query heads, K key/value heads, G = H/K, D head dim, W entries of the list.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.platform import AttentionSpec, StepMetadata
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

#: Entries of the list that one program makes.
_ENTRIES = 128


@dataclass(frozen=True, slots=True)
class PrefillPlan:
    """`work` [W, 2] int32: request and its first row in the step; -1, 0 where there is nothing."""

    work: Tensor
    query_start: Tensor  # [N+1] int32


class Prefill:
    """Launches the kernels below for one spec on one architecture."""

    def __init__(self, spec: AttentionSpec, architecture: Architecture, form: KVFormat) -> None:
        group = spec.num_heads // spec.num_kv_heads
        launch = architecture.launch(
            "attention_prefill",
            head_dim=spec.head_dim,
            group=group,
            block_size=spec.block_size,
            kv_bytes=form.memory.itemsize,
            bytes=4 if spec.dtype == "float32" else 2,
        )
        heads = min(launch.blocks["BLOCK_M"], group)
        self._tokens = launch.blocks["BLOCK_M"] // heads
        self._tiles = -(-group // heads) * spec.num_kv_heads
        self._scale = scaled_for(spec.scale, spec.soft_cap, form.factor)
        self._constants = {
            **launch.blocks,
            **launch.options,
            "TILES": self._tiles,
            "NUM_KV_HEADS": spec.num_kv_heads,
            "GROUP": group,
            "HEADS": heads,
            "TOKENS": self._tokens,
            "HEAD_DIM": spec.head_dim,
            "HEAD_PAD": max(16, triton.next_power_of_2(spec.head_dim)),
            "BLOCK_SIZE": spec.block_size,
            "WINDOW": spec.window,
            "SOFT_CAP": spec.soft_cap,
            "FORMAT": form.read,
            "COMPUTE": form.compute,
            "FACTOR": form.factor,
        }

    def plan(self, step: StepMetadata) -> PrefillPlan:
        """Of the requests behind the first `num_decodes`: at most one tile of each is not full."""
        requests = step.lengths.shape[0] - step.num_decodes
        tokens = step.slots.shape[0] - step.num_decodes
        entries = tokens // self._tokens + requests
        work = torch.empty(entries, 2, dtype=torch.int32, device=step.lengths.device)
        list_kernel[(-(-entries // _ENTRIES),)](
            work,
            step.query_start,
            step.num_decodes,
            requests,
            requests.bit_length(),
            entries,
            TOKENS=self._tokens,
            ENTRIES=_ENTRIES,
        )
        return PrefillPlan(work, step.query_start)

    def __call__(
        self,
        q_THD: Tensor,
        cache: Tensor,
        block_table: Tensor,
        lengths: Tensor,
        plan: PrefillPlan,
        out_THD: Tensor,
    ) -> None:
        """Writes the rows of `out_THD` that the list names; `cache` as kernels read it."""
        entries = plan.work.shape[0]
        prefill_kernel[(entries * self._tiles,)](
            q_THD,
            cache,
            out_THD,
            plan.work,
            plan.query_start,
            block_table,
            lengths,
            self._scale,
            q_THD.stride(0),
            q_THD.stride(1),
            block_table.stride(0),
            entries,
            **self._constants,
        )


@triton.jit(do_not_specialize=["first", "requests", "halvings", "entries"])
def list_kernel(
    work,  # [W, 2] int32
    query_start,  # [N+1] int32
    first,  # request
    requests,
    halvings,
    entries,
    TOKENS: tl.constexpr,
    ENTRIES: tl.constexpr,
):
    """Request i has the entries from (its first row) // TOKENS + i on; the last may go unused.

    An entry's request is the last one that begins at or before it: found by halving.
    """
    entry = tl.program_id(0) * ENTRIES + tl.arange(0, ENTRIES)
    origin = tl.load(query_start + first)
    low = tl.zeros([ENTRIES], tl.int32)
    high = low + requests
    for _ in range(halvings):
        middle = (low + high) // 2
        begins = (tl.load(query_start + first + middle) - origin) // TOKENS + middle
        before = (begins <= entry) & (middle > low)
        low, high = tl.where(before, middle, low), tl.where(before, high, middle)
    row = tl.load(query_start + first + low)
    end = tl.load(query_start + first + low + 1)
    row += (entry - (row - origin) // TOKENS - low) * TOKENS
    real = row < end
    tl.store(work + 2 * entry, tl.where(real, first + low, -1), mask=entry < entries)
    tl.store(work + 2 * entry + 1, tl.where(real, row, 0), mask=entry < entries)


@triton.jit(do_not_specialize=["table_stride", "entries"])
def prefill_kernel(
    q,  # [T, H, D]
    cache,  # [blocks, 2, K, S, D]
    out,  # [T, H, D]
    work,  # [W, 2] int32
    query_start,
    block_table,
    lengths,
    scale,
    q_stride,
    head_stride,
    table_stride,
    entries,
    TILES: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEADS: tl.constexpr,  # of a group, in one program
    TOKENS: tl.constexpr,  # in one program
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
):
    # From the list's end: later rows of a prompt see more keys, and what is longest starts first.
    entry = entries - 1 - tl.program_id(0) // TILES
    request = tl.load(work + 2 * entry)
    if request < 0:
        return
    first_row = tl.load(work + 2 * entry + 1)
    kv_head = tl.program_id(0) % NUM_KV_HEADS
    end_row = tl.load(query_start + request + 1)
    behind = tl.load(lengths + request) - end_row  # a row's token is its number plus this

    rows = tl.arange(0, BLOCK_M)
    token_rows = first_row + rows // HEADS
    places = tl.program_id(0) % TILES // NUM_KV_HEADS * HEADS + rows % HEADS
    heads = kv_head * GROUP + places
    columns = tl.arange(0, HEAD_PAD)
    real = (rows < TOKENS * HEADS) & (token_rows < end_row) & (places < GROUP)
    real = real[:, None] & (columns < HEAD_DIM)[None, :]
    at = q + (token_rows.to(tl.int64) * q_stride + heads * head_stride)[:, None]
    query = operand(tl.load(at + columns[None, :], mask=real, other=0.0), COMPUTE)

    token, first_token = token_rows + behind, first_row + behind
    last_token = tl.minimum(first_row + TOKENS, end_row) - 1 + behind
    total, sums = _attend_all(
        query, token, first_token, last_token, cache, kv_head, block_table, request, table_stride,
        scale, NUM_KV_HEADS, HEAD_DIM, HEAD_PAD, BLOCK_SIZE, WINDOW, SOFT_CAP, FORMAT, COMPUTE,
        BLOCK_M, BLOCK_N,
    )  # fmt: skip
    lines = token_rows.to(tl.int64) * (NUM_KV_HEADS * GROUP) + heads
    store_rows(out, lines, divided(sums, total, FACTOR), real, HEAD_DIM, HEAD_PAD)


@triton.jit
def _attend_all(
    query, token, first_token, last_token, cache, kv_head, block_table, request, table_stride,
    scale,
    NUM_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, HEAD_PAD: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, WINDOW: tl.constexpr, SOFT_CAP: tl.constexpr,
    FORMAT: tl.constexpr, COMPUTE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """(total [M], sums [M, D]) of `attend` over all keys that the rows see.

    `query` [M, D] is of the tokens `token` [M], which lie from the first to the last one.
    """
    first, low, open_first, open_last, high = _key_tiles(first_token, last_token, WINDOW, BLOCK_N)
    stop = last_token + 1
    BLOCK_STRIDE: tl.constexpr = 2 * NUM_KV_HEADS * BLOCK_SIZE * HEAD_DIM
    keys = cache + kv_head * (BLOCK_SIZE * HEAD_DIM)
    values = keys + NUM_KV_HEADS * BLOCK_SIZE * HEAD_DIM
    table = block_table + request.to(tl.int64) * table_stride
    highest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    sums = tl.zeros([BLOCK_M, HEAD_PAD], tl.float32)
    for tile in range(open_first, open_last):
        lines = key_rows(table, tile * BLOCK_N, stop, BLOCK_SIZE, BLOCK_STRIDE, HEAD_DIM, BLOCK_N)
        k = key_tile(keys, lines, None, FORMAT, COMPUTE, HEAD_DIM, HEAD_PAD, False)
        v = key_tile(values, lines, None, FORMAT, COMPUTE, HEAD_DIM, HEAD_PAD, False)
        highest, total, sums = attend(
            query, k, v, highest, total, sums, None, scale, SOFT_CAP, False
        )
    lower = open_first - low
    for index in range(lower + high - open_last):
        tile = tl.where(index < lower, low + index, open_last - lower + index)
        tokens = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        lines = key_rows(table, tile * BLOCK_N, stop, BLOCK_SIZE, BLOCK_STRIDE, HEAD_DIM, BLOCK_N)
        written = (tokens >= first) & (tokens < stop)
        k = key_tile(keys, lines, written, FORMAT, COMPUTE, HEAD_DIM, HEAD_PAD, True)
        v = key_tile(values, lines, written, FORMAT, COMPUTE, HEAD_DIM, HEAD_PAD, True)
        seen = tokens[None, :] <= token[:, None]
        if WINDOW is not None:
            seen = seen & (tokens[None, :] > token[:, None] - WINDOW)
        highest, total, sums = attend(
            query, k, v, highest, total, sums, seen, scale, SOFT_CAP, True
        )
    return total, sums


@triton.jit
def _key_tiles(first_token, last_token, WINDOW: tl.constexpr, BLOCK_N: tl.constexpr):
    """(first, low, open_first, open_last, high): the first key, and where ranges of tiles begin.

    Keys, in tiles:    low      open        high
                    |----------|=======|-------------|      every row sees all of the open ones,
                  first                            stop     some rows see some of the others
    """
    high = tl.cdiv(last_token + 1, BLOCK_N)
    first = 0
    open_first = 0
    if WINDOW is not None:
        first = tl.maximum(first_token - WINDOW + 1, 0)
        open_first = tl.cdiv(tl.maximum(last_token - WINDOW + 1, 0), BLOCK_N)
        open_first = tl.minimum(open_first, high)
    open_last = tl.maximum((first_token + 1) // BLOCK_N, open_first)
    return first, first // BLOCK_N, open_first, open_last, high
