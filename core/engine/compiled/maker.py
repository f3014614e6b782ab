"""Makes programs of functions of tensors."""

from collections.abc import Callable
from types import FunctionType
from typing import Any, TypeAlias

import torch
from torch import Tensor

#: A name that `torch.compile` knows, or what makes a callable of a graph and example inputs.
DynamoBackend: TypeAlias = (
    "str | Callable[[torch.fx.GraphModule, list[Tensor]], Callable[..., Any]]"
)


class ProgramMaker:
    """One for a platform, so that everything its compiler makes is counted in one place.

    A program is one graph for one shape: `torch.compile` with `fullgraph` and without dynamic
    shapes. Whatever could change between two calls is in its tensors, so its guards are left out.
    `num_compiled` counts the graphs that the backend was given.
    """

    def __init__(self, backend: DynamoBackend) -> None:
        self.num_compiled = 0
        self._backend = backend
        self._num_made = 0

    def make(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        """Compiled at its first call, which so decides the shapes of all others.

        Raises, from what is made:
            OutOfMemoryError: the program does not fit, whether its compiler or its run says so.
        """
        from torch._dynamo.exc import BackendCompilerFailed  # seconds, for platforms that compile

        def count(graph: torch.fx.GraphModule, examples: list[Tensor]) -> Callable[..., Any]:
            self.num_compiled += 1
            return inner(graph, examples)

        inner = torch._dynamo.lookup_backend(self._backend)
        self._num_made += 1
        # torch keeps programs by code object, and only a few for each: every program has its own.
        own = FunctionType(
            compute.__code__.replace(co_name=f"program_{self._num_made}"),
            compute.__globals__,
            closure=compute.__closure__,
        )
        options: dict[str, Any] = {"guard_filter_fn": torch.compiler.skip_all_guards_unsafe}
        program: Callable[..., Any] = torch.compile(
            own, backend=count, fullgraph=True, dynamic=False, options=options
        )

        def run(*tensors: Tensor) -> Any:
            try:
                return program(*tensors)
            except BackendCompilerFailed as failed:
                if isinstance(failed.inner_exception, torch.OutOfMemoryError):
                    raise failed.inner_exception from failed
                raise

        return run
