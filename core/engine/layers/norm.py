"""Normalization, alone or together with the addition before it."""

from torch import Tensor

from engine.layers.site import Site


class RMSNorm:
    """Args: weight: [W]; eps: added to the mean square."""

    def __init__(self, site: Site, weight: Tensor, eps: float) -> None:
        width = weight.shape[0]
        self._norm = site.choose("rms_norm", width=width)
        self._add_norm = site.choose("add_rms_norm", width=width)
        self.weight = weight
        self._eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        """[..., W] -> [..., W]."""
        result: Tensor = self._norm(x, self.weight, self._eps)
        return result

    def add(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Of [T, W] each: the normed sum, and the sum."""
        result: tuple[Tensor, Tensor] = self._add_norm(x, residual, self.weight, self._eps)
        return result
