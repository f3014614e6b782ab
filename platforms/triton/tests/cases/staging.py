"""A decode step's inputs, put where captured programs read them, for compilers without a chip."""

import torch
from triton_cases import Case

from engine.platform import StepInputs, StepLimits, StepMetadata
from engine_triton.architecture import Architecture
from engine_triton.staging import StepBuffers

REQUESTS, WIDTH = 3, 40


def stages(device: str, architecture: Architecture) -> None:
    """Three requests, in buffers for four of 32,768 tokens each."""
    limits = StepLimits(max_tokens=64, max_requests=4, max_model_len=32768, block_size=16)
    numbers = torch.zeros((3, REQUESTS), dtype=torch.int64, device=device)
    start = torch.arange(REQUESTS + 1, dtype=torch.int32, device=device)
    lengths = torch.ones(REQUESTS, dtype=torch.int32, device=device)
    table = torch.zeros((REQUESTS, WIDTH), dtype=torch.int32, device=device)
    step = StepMetadata(start, lengths, table, numbers[2], 1, 16 * WIDTH, REQUESTS)
    buffers = StepBuffers(limits, 4, device, architecture)
    buffers.fill(StepInputs(numbers[0], numbers[1], step), 4)


CASES = (Case("stage_step", stages, hot=True),)
