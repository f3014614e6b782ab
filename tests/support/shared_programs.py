"""Programs that the engines of one process share: for stand-ins, whose compiler compiles nothing.

To trace a step takes a second, whatever becomes of the graph, and the conformance kit starts a
hundred engines, most of them like another. torch itself can tell whether a program that was traced
for one engine is right for the next: by the guards that a device's programs leave out. Whatever
differs, be it a layer's shape, the size of the cache or a platform's part, is traced anew.
"""

from collections.abc import Callable
from functools import cache
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor

from engine.compiled import ProgramMaker

#: Programs of one step's shape that may be kept: of different models, caches and parts.
MOST_ALIKE = 256


class SharedPrograms(ProgramMaker):
    """A maker whose compiler runs graphs as they were traced. `num_compiled` counts what had to be
    traced for it: less than there are programs, where others had some of them made before."""

    def __init__(self) -> None:
        super().__init__(run_as_traced)

    def make(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        program: Callable[..., Any] | None = None

        def run(*tensors: Tensor) -> Any:
            nonlocal program
            if program is None:
                shapes = tuple((tuple(one.shape), one.dtype) for one in tensors)
                program = _program(compute, _code(compute.__code__, shapes))
            before = run_as_traced.num_graphs
            try:
                with torch._dynamo.config.patch(recompile_limit=MOST_ALIKE):
                    return program(*tensors)
            finally:
                self.num_compiled += run_as_traced.num_graphs - before

        return run


class _Traced:
    def __init__(self) -> None:
        self.num_graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, examples: list[Tensor]) -> Callable[..., Any]:
        self.num_graphs += 1
        return graph.forward


#: One object: torch shares no program between backends.
run_as_traced = _Traced()


def forget() -> None:
    """Programs made so far are shared no more."""
    _code.cache_clear()


@cache
def _code(code: CodeType, shapes: object) -> CodeType:
    """By which torch finds the programs of such a function at such shapes."""
    return code.replace(co_name=f"{code.co_name}_{_code.cache_info().currsize}")


def _program(compute: Callable[..., Any], code: CodeType) -> Callable[..., Any]:
    own = FunctionType(code, compute.__globals__, closure=compute.__closure__)
    program: Callable[..., Any] = torch.compile(
        own, backend=run_as_traced, fullgraph=True, dynamic=False
    )
    return program
