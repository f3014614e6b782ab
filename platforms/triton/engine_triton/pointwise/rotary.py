"""Rotary position embedding (Su et al., 2021), halves rotated as in GPT-NeoX.

Shape legend: T tokens, H query heads, K key heads, D head dim, R rotated part of it, N heads of a
program.
"""

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine_triton.architecture import Architecture


def unless(**_: object) -> str | None:
    """Every layer is served."""
    return None


def operations(architecture: Architecture) -> dict[str, Callable[..., Any]]:
    return {"rotary_angles": RotaryAngles(architecture), "rotary": Rotary(architecture)}


class RotaryAngles:
    def __init__(self, architecture: Architecture) -> None:
        self._launch = architecture.launch("rotary_angles")

    def __call__(
        self, positions: Tensor, frequencies: Tensor, scale: float
    ) -> tuple[Tensor, Tensor]:
        """positions [T], frequencies [R/2] float32 -> cosine and sine, [T, R/2] float32."""
        tokens, half = positions.shape[0], frequencies.shape[0]
        cos, sin = (torch.empty(tokens, half, device=positions.device) for _ in range(2))
        if tokens:
            _rotary_angles[(tokens,)](
                positions, frequencies, cos, sin, half, scale,
                HALF=triton.next_power_of_2(half), **self._launch.options,
            )  # fmt: skip
        return cos, sin


class Rotary:
    def __init__(self, architecture: Architecture) -> None:
        self._launch = architecture.launch("rotary")

    def __call__(
        self, q_THD: Tensor, k_TKD: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Rotated copies of both. Tokens and heads may lie apart, as in a packed projection."""
        q, k = (one if one.stride(-1) == 1 else one.contiguous() for one in (q_THD, k_TKD))
        turned = [torch.empty(one.shape, dtype=one.dtype, device=one.device) for one in (q, k)]
        tokens, half, size = q.shape[0], cos.shape[-1], q.shape[2]
        heads = self._launch.blocks["HEADS"]
        parts = [triton.cdiv(one.shape[1], heads) for one in (q, k)]
        if tokens:
            _rotary[(tokens, sum(parts))](
                q, k, cos.contiguous(), sin.contiguous(), *turned,
                *q.stride()[:2], *k.stride()[:2], q.shape[1], k.shape[1], parts[0], size, half,
                HALF=triton.next_power_of_2(half),
                REST=triton.next_power_of_2(size - 2 * half) if size > 2 * half else 0,
                **self._launch.blocks, **self._launch.options,
            )  # fmt: skip
        return turned[0], turned[1]


@triton.jit
def _rotary_angles(
    positions_ptr, frequencies_ptr, cos_ptr, sin_ptr, half, scale, HALF: tl.constexpr
):
    token = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, HALF)
    mask = at < half
    position = tl.load(positions_ptr + token).to(tl.float32)
    angle = position * tl.load(frequencies_ptr + at, mask, other=0.0)
    tl.store(cos_ptr + token * half + at, tl.cos(angle) * scale, mask)
    tl.store(sin_ptr + token * half + at, tl.sin(angle) * scale, mask)


@triton.jit
def _rotary(
    q_ptr, k_ptr, cos_ptr, sin_ptr, q_out_ptr, k_out_ptr,
    q_token, q_head, k_token, k_head, q_heads, k_heads, q_parts, size, half,
    HALF: tl.constexpr, REST: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """Programs (T, parts): some heads of one token, of the queries first, then of the keys."""
    token = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    at = tl.arange(0, HALF)
    cos = tl.load(cos_ptr + token * half + at, at < half, other=0.0)[None, :]
    sin = tl.load(sin_ptr + token * half + at, at < half, other=0.0)[None, :]
    if part < q_parts:
        _rotate_heads(
            q_ptr + token * q_token, q_out_ptr + token * q_heads * size, q_head, q_heads,
            part, cos, sin, size, half, HALF, REST, HEADS,
        )  # fmt: skip
    else:
        _rotate_heads(
            k_ptr + token * k_token, k_out_ptr + token * k_heads * size, k_head, k_heads,
            part - q_parts, cos, sin, size, half, HALF, REST, HEADS,
        )  # fmt: skip


@triton.jit
def _rotate_heads(
    x_ptr, out_ptr, head_stride, heads, part, cos, sin, size, half,
    HALF: tl.constexpr, REST: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    head_N1 = (part * HEADS + tl.arange(0, HEADS))[:, None]
    at_1H = tl.arange(0, HALF)[None, :]
    mask = (head_N1 < heads) & (at_1H < half)
    source = x_ptr + head_N1 * head_stride + at_1H
    target = out_ptr + head_N1 * size + at_1H
    first = tl.load(source, mask, other=0.0)
    second = tl.load(source + half, mask, other=0.0)
    a, b = first.to(tl.float32), second.to(tl.float32)
    tl.store(target, (a * cos - b * sin).to(first.dtype), mask)
    tl.store(target + half, (b * cos + a * sin).to(first.dtype), mask)
    if REST:
        at_1R = 2 * half + tl.arange(0, REST)[None, :]
        mask = (head_N1 < heads) & (at_1R < size)
        rest = tl.load(x_ptr + head_N1 * head_stride + at_1R, mask, other=0.0)
        tl.store(out_ptr + head_N1 * size + at_1R, rest, mask)
