"""The choice of tokens from a large vocabulary, for compilers that have no chip."""

import numpy as np
import torch
from triton_cases import Case

from engine_triton.architecture import Architecture
from engine_triton.sampling.argmax import Argmax
from engine_triton.sampling.penalties import Penalize
from engine_triton.sampling.sample import Sample

VOCAB = 151936


def argmax(device: str, architecture: Architecture) -> None:
    Argmax(architecture)(torch.zeros(3, VOCAB, device=device))


def sample(device: str, architecture: Architecture) -> None:
    """With filters and without."""
    scores, highest = torch.zeros(3, VOCAB, device=device), torch.zeros(3, device=device)
    whole, number = np.zeros(3, dtype=np.int64), np.ones(3, dtype=np.float32)
    uniforms = np.zeros((3, 2), dtype=np.float32)
    run = Sample(architecture)
    for top_k in (whole, whole + 20):
        run(scores, highest, np.arange(3), number, top_k, number, 0 * number, uniforms)


def penalize(device: str, architecture: Architecture) -> None:
    scores = torch.zeros(3, VOCAB, device=device)
    tokens = torch.zeros(3, 4096, dtype=torch.int32, device=device)
    whole, number = np.ones(3, dtype=np.int64), np.ones(3, dtype=np.float32)
    at = np.arange(3)
    Penalize(architecture)(scores, tokens, at, at, 4096 * whole, whole, number, number, number)


CASES = (
    Case("argmax", argmax, hot=True),
    Case("sample", sample, hot=True),
    Case("penalize", penalize, hot=True),
)
