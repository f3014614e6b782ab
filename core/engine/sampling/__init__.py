"""Choosing tokens on the device. `check` needs no torch; `sampler` and `logprobs` do."""

from engine.sampling.check import check

__all__ = ["check"]
