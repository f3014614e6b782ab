"""One engine that serves language models on any accelerator."""

from typing import TYPE_CHECKING, Any

from engine.params import SamplingParams

if TYPE_CHECKING:
    from engine.llm import LLM, AsyncLLM, CompletionOutput, Piece, RequestOutput

__all__ = [
    "LLM",
    "AsyncLLM",
    "CompletionOutput",
    "Piece",
    "RequestOutput",
    "SamplingParams",
    "__version__",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import what runs an engine when it is first asked for: `import engine` alone stays quick."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from engine import llm

    return vars(llm)[name]
