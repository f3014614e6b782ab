"""Operations on each token alone, one kernel each. All compute in float32 and round once."""

from engine.platform.ops import OpTable
from engine_triton.architecture import Architecture

__all__ = ["register"]

_PRIORITY = 10


def register(table: OpTable, architecture: Architecture, *, source: str) -> None:
    """Add the operations of this package, under the platform's name."""
    from engine_triton.pointwise import multiply, norm, rotary

    for module in (multiply, norm, rotary):
        for name, function in module.operations(architecture).items():
            table.register(name, source=source, priority=_PRIORITY, unless=module.unless)(function)
