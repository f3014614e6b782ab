"""Weights of a linear layer in memory, as they were given or rounded.

Shape legend: O output features, K input features, G groups of input features, N rows looked up.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

#: See `engine_triton.linear.tiles`.
Form = Literal["plain", "rows", "blocks", "groups"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Weight:
    """A matrix of `outputs` x `inputs` features.

    form "plain": `levels` [O, K] are the weights.
    form "rows": `levels` [O, K] int8 or fp8, `scales` [O] float32.
    form "blocks": `levels` [O, K] fp8, `scales` [ceil(O / group), ceil(K / group)] float32.
    form "groups": `levels` [O, G * group / 2] uint8 of two 4-bit levels each, the first half of a
    group in the low halves; `scales` [O, G]; `zeros` [O, G] uint8, the level that means 0, or None
    where 8 does.
    """

    form: Form
    levels: Tensor
    inputs: int
    scales: Tensor | None = None
    zeros: Tensor | None = None
    group: int = 1

    @property
    def outputs(self) -> int:
        return len(self.levels)

    @property
    def num_bytes(self) -> int:
        kept = (self.levels, self.scales, self.zeros)
        return sum(one.nbytes for one in kept if one is not None)

    @property
    def is_fp8(self) -> bool:
        return self.form in ("rows", "blocks") and self.levels.dtype != torch.int8

    def as_stored(self, fp8: str | None) -> "Weight":
        """As kernels read it: contiguous, with levels as the chip knows them.

        `fp8` is `Architecture.fp8`.
        "e4m3fnuz" means half of what e4m3 does by the same bits, and NaN by those of -0. Where the
        chip has no fp8 at all, kernels are given the bits.
        """
        levels = self.levels.contiguous()
        scales = None if self.scales is None else self.scales.contiguous()
        zeros = None if self.zeros is None else self.zeros.contiguous()
        if self.is_fp8 and fp8 is None:
            levels = levels.view(torch.uint8)
        if self.is_fp8 and fp8 == "e4m3fnuz":
            assert scales is not None
            bits = levels.view(torch.uint8)
            levels = torch.where(bits == 0x80, 0, bits).view(torch.float8_e4m3fnuz)
            scales = scales * 2
        return replace(self, levels=levels, scales=scales, zeros=zeros)

    def rows(self, ids_N: Tensor, dtype: torch.dtype) -> Tensor:
        """[N] int64 -> those rows' weights, as they were rounded, [N, K] of `dtype`."""
        levels = self.levels[ids_N]
        if self.form == "plain":
            return levels
        assert self.scales is not None
        if self.form == "groups":
            return self._of_groups(levels, ids_N).to(dtype)
        if levels.dtype == torch.uint8:
            levels = levels.view(torch.float8_e4m3fn)
        if self.form == "rows":
            return (levels.float() * self.scales[ids_N, None]).to(dtype)
        scales = self.scales[ids_N // self.group].repeat_interleave(self.group, 1)
        return (levels.float() * scales[:, : self.inputs]).to(dtype)

    def _of_groups(self, levels: Tensor, ids_N: Tensor) -> Tensor:
        assert self.scales is not None
        levels = levels.unflatten(-1, (-1, self.group // 2))
        zeros = 8.0 if self.zeros is None else self.zeros[ids_N].float()[..., None]
        wide = torch.cat((levels & 15, levels >> 4), -1).float() - zeros
        return (wide * self.scales[ids_N].float()[..., None]).flatten(1)[:, : self.inputs]


def plain(weight_OK: Tensor) -> Weight:
    return Weight(form="plain", levels=weight_OK.contiguous(), inputs=weight_OK.shape[1])
