"""Linear layers, split over the ranks by output (column) or by input (row).

A column-parallel layer followed by a row-parallel one needs a single all-reduce between them
(Shoeybi et al., 2019, Megatron-LM, section 3).
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from engine.layers.site import Site


class ColumnParallelLinear:
    """Every rank has some of the output features.

    Args:
        weight: [O of this rank, I].
        bias: [O of this rank], or None.
        gather: return all ranks' features instead of this rank's own.
    """

    def __init__(
        self, site: Site, weight: Tensor, bias: Tensor | None = None, *, gather: bool = False
    ) -> None:
        self._apply = _pack(site, weight, bias)
        self._communicator = site.communicator
        self._gather = gather and site.size > 1

    def __call__(self, x: Tensor) -> Tensor:
        """[T, I] -> [T, O of this rank], or [T, O] where gathered."""
        return self._gathered(self._apply(x))

    def logits(self, x: Tensor) -> Tensor:
        """The same in float32."""
        return self._gathered(in_float32(self._apply)(x)).float()

    def _gathered(self, result: Tensor) -> Tensor:
        return self._communicator.all_gather(result) if self._gather else result


class RowParallelLinear:
    """Every rank has some of the input features; results are summed over ranks.

    Args:
        weight: [O, I of this rank].
        bias: [O], the same on every rank, or None.
    """

    def __init__(self, site: Site, weight: Tensor, bias: Tensor | None = None) -> None:
        alone = site.size == 1
        self._apply = _pack(site, weight, bias if alone else None)
        self._bias = None if alone else bias  # added once, after the sum
        self._communicator = site.communicator

    def __call__(self, x: Tensor) -> Tensor:
        """[T, I of this rank] -> [T, O]."""
        result = self._communicator.all_reduce(self._apply(x))
        return result if self._bias is None else result + self._bias


def in_float32(packed: Any) -> Callable[[Tensor], Tensor]:
    """A linear layer that a factory made, with results that are not rounded to the dtype of their
    inputs, where it can do that."""
    apply: Callable[[Tensor], Tensor] = getattr(packed, "in_float32", packed)
    return apply


def _pack(site: Site, weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    out_features, in_features = weight.shape
    factory = site.choose_factory(
        "linear", in_features=in_features, out_features=out_features, bias=bias is not None
    )
    packed = factory(weight, bias)
    site.count(packed, weight)
    apply: Callable[[Tensor], Tensor] = packed
    return apply
