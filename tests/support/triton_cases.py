"""What a group of kernels is proved with: calls of the package's own host functions.

`platforms/triton/tests/cases/GROUP.py` has `CASES`. `engine_triton.offline` runs each for chips
that are not here: tensors are real, kernels are compiled, nothing is launched.
"""

from collections.abc import Callable
from dataclasses import dataclass

from engine_triton.architecture import Architecture


@dataclass(frozen=True, slots=True)
class Case:
    """`run(device, architecture)` makes its tensors on the device and calls host functions.

    A kernel that a case launches may not spill if the case is `hot`, and must use a matrix
    instruction if it is `matrix`. `unless` says why an architecture does not serve it, or None.
    """

    name: str
    run: Callable[[str, Architecture], None]
    hot: bool = False
    matrix: bool = False
    unless: Callable[[Architecture], str | None] = lambda _: None
