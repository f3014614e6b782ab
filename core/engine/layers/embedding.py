"""Token embedding, its rows split over the ranks, or tied to the output layer."""

from torch import Tensor

from engine.layers.linear import in_float32
from engine.layers.site import Site


class Embedding:
    """
    Args:
        weight: [V, W], or this rank's rows of it.
        split_from: the token id of this rank's first row; None: every rank has all rows.
    """

    def __init__(self, site: Site, weight: Tensor, split_from: int | None = None) -> None:
        rows, width = weight.shape
        self._look_up = site.choose("embedding", rows=rows, width=width)
        self._weight = weight
        self._split_from = split_from
        self._communicator = site.communicator

    def __call__(self, ids: Tensor) -> Tensor:
        """[T] int64 -> [T, W]."""
        if self._split_from is None:
            return self._rows(ids)
        local = ids - self._split_from
        foreign = (local < 0) | (local >= self._weight.shape[0])
        rows = self._rows(local.masked_fill(foreign, 0))
        return self._communicator.all_reduce(rows.masked_fill(foreign.unsqueeze(-1), 0))

    def _rows(self, ids: Tensor) -> Tensor:
        rows: Tensor = self._look_up(ids, self._weight)
        return rows


class TiedEmbedding:
    """One matrix that every rank has whole: it looks tokens up, and gives the logits of the output.

    Args:
        weight: [V, W].
    """

    def __init__(self, site: Site, weight: Tensor) -> None:
        rows, width = weight.shape
        factory = site.choose_factory("tied_embedding", rows=rows, width=width)
        self._look_up, self._apply = factory(weight)
        site.count(self._apply, weight)

    def __call__(self, ids: Tensor) -> Tensor:
        """[T] int64 -> [T, W]."""
        result: Tensor = self._look_up(ids)
        return result

    def logits(self, x: Tensor) -> Tensor:
        """[T, W] -> [T, V] float32."""
        return in_float32(self._apply)(x).float()
