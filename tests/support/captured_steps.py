"""Steps whose model runs on a stand-in that records work as strictly as a graph does."""

import torch
from recorded import record
from torch import Tensor

from engine.platform import StepInputs, StepLimits, StepMetadata
from engine_triton.device import Device

LIMITS = StepLimits(max_tokens=64, max_requests=6, max_model_len=200, block_size=16)


class Host(Device):
    """Memory that shrinks by a page a program."""

    name = "cpu:0"

    def __init__(self) -> None:
        self.captured: list[torch.Size] = []
        self.refuses: set[int] = set()
        self.free = 1 << 30

    def capture(self, work):
        made = record(work).recording
        if len(made.result) in self.refuses:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.captured.append(made.result.shape)
        self.free -= 4096
        return made

    def synchronize(self):
        """Nothing runs beside the host."""

    def memory(self):
        return self.free, 1 << 30

    def reserved(self):
        return 0, 0

    def forget_peak(self):
        """There is none."""

    def release_cached(self):
        """There is nothing."""

    def to_host(self, x):
        return lambda: x


def forward(inputs: StepInputs) -> Tensor:
    """[T, 5]: everything that a step of one token a request knows, computed on the device."""
    step = inputs.metadata
    entries = torch.arange(step.block_table.shape[1])
    used = entries < (step.lengths[:, None] + 15) // 16
    places = (torch.where(used, step.block_table, 0) * (entries + 1)).sum(1)
    known = (inputs.input_ids, inputs.positions, step.slots, step.lengths, places)
    return torch.stack([one.double() for one in known], dim=1)


def prompt(inputs: StepInputs) -> Tensor:
    """As the model is called for steps with prompts: only how many there are."""
    return inputs.positions[:, None].double()


def model(inputs: StepInputs) -> Tensor:
    return forward(inputs) if inputs.metadata.max_query == 1 else prompt(inputs)


def decode_step(count: int, seed: int = 0, width: int = 3) -> StepInputs:
    """Of `count` requests whose numbers nobody else has; their views are as the core's are."""
    random = torch.Generator().manual_seed(seed)
    numbers = torch.randint(1, 1000, (3, count), generator=random)
    lengths = torch.randint(1, 16 * width + 1, (count,), generator=random, dtype=torch.int32)
    table = torch.randint(1, 99, (count, width), generator=random, dtype=torch.int32)
    start = torch.arange(count + 1, dtype=torch.int32)
    metadata = StepMetadata(start, lengths, table, numbers[2], 1, int(lengths.max()), count)
    return StepInputs(numbers[0], numbers[1], metadata)


def prompt_step(requests: int, tokens: int, shape=None) -> StepInputs:
    each = tokens // requests
    start = torch.arange(0, tokens + 1, each, dtype=torch.int32)
    lengths = torch.full((requests,), each, dtype=torch.int32)
    table = torch.zeros((requests, 1), dtype=torch.int32)
    slots = torch.arange(tokens)
    step = StepMetadata(start, lengths, table, slots, each, each, requests if each == 1 else 0)
    return StepInputs(torch.zeros(tokens, dtype=torch.int64), slots.clone(), step)
