"""Rotary positions: angles once a step, the rotation once a layer."""

import torch
from torch import Tensor

from engine.layers.site import Site


class Rotary:
    """Args:
    frequencies: [R/2] float32, radians a position.
    scale: multiplies cosine and sine (the attention factor of YaRN and LongRoPE).
    head_dim: D; the first R of each head's dimensions are rotated.
    """

    def __init__(self, site: Site, frequencies: Tensor, scale: float, head_dim: int) -> None:
        self.dim = 2 * frequencies.shape[0]
        facts = {"head_dim": head_dim, "rotary_dim": self.dim}
        self._turn = site.choose("rotary_angles", **facts)
        self._rotate = site.choose("rotary", **facts)
        self._frequencies = frequencies.to(site.device, torch.float32)
        self._scale = scale

    def angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """[T] int64 -> cosine and sine, [T, R/2] float32."""
        result: tuple[Tensor, Tensor] = self._turn(positions, self._frequencies, self._scale)
        return result

    def __call__(
        self, q_THD: Tensor, k_TKD: Tensor, angles: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        result: tuple[Tensor, Tensor] = self._rotate(q_THD, k_TKD, *angles)
        return result
