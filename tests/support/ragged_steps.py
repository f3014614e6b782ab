"""Ragged steps over a paged cache in numpy, with the right answer in float64.

Letters: T tokens, N requests, H query heads, K key/value heads, D head dim, B entries of a block
table, S tokens a block, C tokens of one request.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Rounded = np.ndarray  # of float64, of numbers that the dtype under test has


@dataclass(frozen=True, kw_only=True)
class Heads:
    """One attention layer. `rounding` is the dtype under test."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    block_size: int
    rounding: np.dtype
    scale: float = 0.2
    window: int | None = None
    soft_cap: float | None = None


@dataclass(frozen=True, kw_only=True)
class Step:
    """Keys and values of the step's tokens are those that the cache already has."""

    q_THD: Rounded
    k_TKD: Rounded
    v_TKD: Rounded
    k_NCKD: list[Rounded]  # all tokens of each request
    v_NCKD: list[Rounded]
    query_start_N1: np.ndarray
    lengths_N: np.ndarray
    block_table_NB: np.ndarray
    slots_T: np.ndarray  # -1 for rows that are padding
    expected_THD: np.ndarray  # 0 for rows that are padding


def make(
    heads: Heads,
    requests: Sequence[tuple[int, int]],
    *,
    tokens: int,
    room: int,
    table: int,
    num_blocks: int,
    seed: int = 0,
) -> Step:
    """Requests of (rows, length), padded to so many tokens, requests and entries of a table.

    Queries, keys and values of padding are infinite, its table entries -1; blocks are taken in
    random order.
    """
    random = np.random.default_rng(seed)

    def normal(*shape: int) -> Rounded:
        return random.standard_normal(shape).astype(heads.rounding).astype(np.float64)

    free = list(random.permutation(num_blocks))
    q = np.full((tokens, heads.num_heads, heads.head_dim), np.inf)
    k, v = (np.full((tokens, heads.num_kv_heads, heads.head_dim), np.inf) for _ in range(2))
    expected, slots = np.zeros_like(q), np.full(tokens, -1)
    starts, lengths = np.zeros(room + 1, int), np.zeros(room, int)
    tables = np.full((room, table), -1)
    keys: list[Rounded] = []
    values: list[Rounded] = []
    start = 0
    for number, (rows, length) in enumerate(requests):
        here, size = slice(start, start + rows), heads.block_size
        blocks = [free.pop() for _ in range(-(-length // size))]
        keys.append(normal(length, heads.num_kv_heads, heads.head_dim))
        values.append(normal(length, heads.num_kv_heads, heads.head_dim))
        q[here] = normal(rows, heads.num_heads, heads.head_dim)
        k[here], v[here] = keys[-1][length - rows :], values[-1][length - rows :]
        expected[here] = exact(heads, q[here], keys[-1], values[-1])
        slots[here] = [blocks[i // size] * size + i % size for i in range(length - rows, length)]
        tables[number, : len(blocks)] = blocks
        lengths[number] = length
        start += rows
        starts[number + 1 :] = start
    return Step(
        q_THD=q,
        k_TKD=k,
        v_TKD=v,
        k_NCKD=keys,
        v_NCKD=values,
        query_start_N1=starts,
        lengths_N=lengths,
        block_table_NB=tables,
        slots_T=slots,
        expected_THD=expected,
    )


def exact(heads: Heads, q_THD: Rounded, k_CKD: Rounded, v_CKD: Rounded) -> np.ndarray:
    """Plain causal attention of the last tokens of one request."""
    shared = heads.num_heads // heads.num_kv_heads
    k_CHD, v_CHD = (x.repeat(shared, axis=1) for x in (k_CKD, v_CKD))
    scores_HTC = np.einsum("thd,chd->htc", q_THD, k_CHD) * heads.scale
    if heads.soft_cap is not None:
        scores_HTC = heads.soft_cap * np.tanh(scores_HTC / heads.soft_cap)
    rows, length = len(q_THD), len(k_CKD)
    back_TC = np.arange(length - rows, length)[:, None] - np.arange(length)
    seen_TC = back_TC >= 0
    if heads.window is not None:
        seen_TC &= back_TC < heads.window
    weights_HTC = np.exp(scores_HTC - scores_HTC.max(-1, keepdims=True)) * seen_TC
    weights_HTC /= weights_HTC.sum(-1, keepdims=True)
    return np.einsum("htc,chd->thd", weights_HTC, v_CHD)
