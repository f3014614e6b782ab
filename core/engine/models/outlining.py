"""A model's layers, built on shapes alone, to see what they ask of a platform.

No weight is read, and nothing is made on the device: tensors are on torch's "meta" device, which
has shapes and no memory. The decoder that is built asks every question that the real one asks; what
it is answered with is noted in the table, and never called.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.layers import Site
from engine.models.checkpoint import Checkpoint, Piece
from engine.models.load_request import LoadRequest
from engine.models.loading import build, declared
from engine.platform.attention import AttentionSpec
from engine.platform.comm import SoloCommunicator
from engine.platform.ops import OpTable


@dataclass(frozen=True, slots=True)
class Outline:
    specs: list[AttentionSpec]  # one a layer, of one rank
    num_bytes: int  # of one rank's weights in the dtype of the request, before quantization


def outline(request: LoadRequest, ops: OpTable, ranks: int) -> Outline | None:
    """What the first of `ranks` asks of `ops`, which notes its answers, and of attention.

    None: the model runs through transformers' code, which tells this only when it is loaded.

    Raises:
        ModelError: config.json cannot be used, or the model cannot be divided by so many ranks.
    """
    found = declared(request)
    if found is None:
        return None
    checkpoint = _Shapes()
    site = Site(
        Questions(ops, request.device),
        _FirstOf(ranks),
        getattr(torch, request.dtype),
        "meta",
        request.quantization,
    )
    model = build(request, *found, checkpoint, site)
    return Outline(model.attention_specs(), checkpoint.num_bytes_read)


class Questions(OpTable):
    """Asks another table, for layers on `device`, and hands out nothing that computes."""

    def __init__(self, table: OpTable, device: str) -> None:
        super().__init__()
        self._table = table
        self._device = device

    def choose(self, name: str, **facts: Any) -> Callable[..., Any]:
        self._table.choose(name, **{**facts, "device": self._device})
        return _Nothing()


class _Nothing:
    """Stands for an operation, and for whatever a factory makes of weights."""

    num_bytes = 0

    def __call__(self, *arguments: object) -> "_Nothing":
        return self

    def __iter__(self) -> "Iterator[_Nothing]":
        return iter((self, self))  # `tied_embedding` makes two functions


class _Shapes(Checkpoint):
    """A checkpoint that has every tensor it is asked for, in the shape that is expected."""

    def __init__(self) -> None:
        self._folder = Path()
        self.num_bytes_read = 0

    def __contains__(self, name: str) -> bool:
        return False  # of experts that may lie stacked or apart, say: apart

    def _stored(self, piece: Piece) -> Tensor:
        return torch.empty(piece.shape, device="meta")


class _FirstOf(SoloCommunicator):
    """Rank 0 of a group that never meets."""

    def __init__(self, size: int) -> None:
        self.size = size
