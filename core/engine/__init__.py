"""One engine that serves language models on any accelerator."""

from engine.params import SamplingParams

__all__ = ["SamplingParams", "__version__"]
__version__ = "0.1.0"
