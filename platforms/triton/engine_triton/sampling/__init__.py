"""Operations that choose the next tokens, without a wait for the device."""

from engine.platform.ops import OpTable
from engine_triton.architecture import Architecture

__all__ = ["register"]

_PRIORITY = 10


def register(table: OpTable, architecture: Architecture, *, source: str) -> None:
    """Add the operations of this package, under the platform's name."""
    from engine_triton.sampling.argmax import Argmax
    from engine_triton.sampling.penalties import Penalize
    from engine_triton.sampling.sample import Sample, unless

    table.register("argmax", source=source, priority=_PRIORITY)(Argmax(architecture))
    table.register("sample", source=source, priority=_PRIORITY, unless=unless)(Sample(architecture))
    table.register("penalize", source=source, priority=_PRIORITY)(Penalize(architecture))
