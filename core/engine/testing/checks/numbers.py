"""Random numbers and errors, alike on every machine."""

from zlib import crc32

import torch
from torch import Tensor

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def generator(name: str) -> torch.Generator:
    """On the host, seeded by a name: each case has its own numbers, always the same ones."""
    return torch.Generator().manual_seed(crc32(name.encode()))


def relative_error(found: Tensor, expected: Tensor) -> float:
    """The largest difference, as a share of the largest expected value. NaN counts as infinite."""
    assert found.shape == expected.shape, f"shape {found.shape}, expected {expected.shape}"
    wide, right = found.double(), expected.double()
    if not bool(wide.isfinite().all()):
        return float("inf")
    return float((wide - right).abs().max() / right.abs().max().clamp_min(1e-12))
