"""A mixture of experts: a router, and experts of which each token uses a few."""

from dataclasses import replace

import torch
from torch import Tensor

from engine.layers.linear import ColumnParallelLinear
from engine.layers.site import Site


class Mixture:
    """Every rank has a slice of each expert's inner width.

    Args:
        router: [E, W], the same on every rank; never quantized, for it is small and decides much.
        gate_up: [E, 2F of this rank, W].
        down: [E, W, F of this rank].
        active: experts a token.
    """

    def __init__(
        self, site: Site, router: Tensor, gate_up: Tensor, down: Tensor, active: int
    ) -> None:
        experts, width, expert_width = down.shape
        self._router = ColumnParallelLinear(replace(site, quantization=None), router)
        self._experts = site.choose_factory(
            "mixture_of_experts", experts=experts, width=width, expert_width=expert_width
        )(gate_up, down)
        site.count(self._experts, gate_up, down)
        self._active = active
        self._communicator = site.communicator

    def __call__(self, x: Tensor) -> Tensor:
        """[T, W] -> [T, W]. The shares of a token's experts sum to one."""
        likely = torch.softmax(self._router(x).float(), dim=-1)
        share, ids = likely.topk(self._active, dim=-1)
        share = share / share.sum(dim=-1, keepdim=True)
        return self._communicator.all_reduce(self._experts(x, share, ids))
