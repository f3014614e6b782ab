"""Operations on each token alone, of the sizes of models, for compilers that have no chip.

Shape legend: T tokens, W width.
"""

from collections.abc import Callable

import torch
from triton_cases import Case

from engine_triton.architecture import Architecture
from engine_triton.pointwise.multiply import Multiply
from engine_triton.pointwise.norm import RMSNorm
from engine_triton.pointwise.rotary import Rotary, RotaryAngles

TOKENS = 5


def norms(width: int) -> Callable[[str, Architecture], None]:
    def run(device: str, architecture: Architecture) -> None:
        norm = RMSNorm(architecture)
        x = torch.zeros(TOKENS, width, dtype=torch.bfloat16, device=device)
        weight = torch.ones(width, dtype=torch.bfloat16, device=device)
        norm(x, weight, 1e-5)
        norm.add(x, x, weight, 1e-5)

    return run


def head_norm(device: str, architecture: Architecture) -> None:
    packed = torch.zeros(TOKENS, 48 * 128, dtype=torch.bfloat16, device=device)
    heads = packed[:, : 32 * 128].view(TOKENS, 32, 128)
    RMSNorm(architecture)(heads, torch.ones(128, dtype=torch.bfloat16, device=device), 1e-6)


def rotary(device: str, architecture: Architecture) -> None:
    positions = torch.zeros(TOKENS, dtype=torch.int64, device=device)
    angles = RotaryAngles(architecture)(positions, torch.ones(64, device=device), 1.0)
    q = torch.zeros(TOKENS, 32, 128, dtype=torch.bfloat16, device=device)
    Rotary(architecture)(q, q[:, :8], *angles)


def multiply(device: str, architecture: Architecture) -> None:
    x = torch.zeros(TOKENS, 2 * 14336, dtype=torch.bfloat16, device=device)
    Multiply(architecture, gelu=False)(x)
    Multiply(architecture, gelu=True)(x)


CASES = (
    Case("norms", norms(4096), hot=True),
    Case("norms, widest rows", norms(16384), hot=True),
    Case("norm of heads", head_norm, hot=True),
    Case("rotary", rotary),
    Case("gate times up", multiply, hot=True),
)
