"""The core's own runner, for platforms on the wide seam."""

from engine.runner.model_runner import ModelRunner

__all__ = ["ModelRunner"]
