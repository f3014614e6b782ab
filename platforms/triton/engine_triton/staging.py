"""The inputs of decode steps, at addresses that stay: a captured program reads them there.

Legend: N requests of a step, W entries of its block table, P programs' requests, B entries of the
longest context's block table. A decode step has one token a request.

    step     [N, W]     ------>    buffers    | table      | 0 |
                                              | 0 (block)  | 0 |   rows N:P are padding
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.platform import StepInputs, StepLimits, StepMetadata
from engine_triton.architecture import Architecture

#: What fills a step up: a token that is stored nowhere, and that sees the first place of the first
#: block. Nobody reads what is computed for it.
PAD_SLOT = -1
PAD_LENGTH = 1


class StepBuffers:
    """For steps of at most `most` requests, each within `limits`."""

    def __init__(
        self, limits: StepLimits, most: int, device: str, architecture: Architecture
    ) -> None:
        self._launch = architecture.launch("stage_step")
        self._block_size = limits.block_size
        self._numbers = torch.zeros((3, most), dtype=torch.int64, device=device)
        self._numbers[2].fill_(PAD_SLOT)
        self._lengths = torch.full((most,), PAD_LENGTH, dtype=torch.int32, device=device)
        self._query_start = torch.arange(most + 1, dtype=torch.int32, device=device)
        self._table = torch.zeros((most, limits.max_blocks), dtype=torch.int32, device=device)

    @staticmethod
    def num_bytes(limits: StepLimits, most: int) -> int:
        return most * (3 * 8 + 4 + 4 + 4 * limits.max_blocks)

    def step(self, count: int) -> StepInputs:
        """Of `count` requests: the buffers' beginnings, whatever is in them."""
        ids, positions, slots = self._numbers[:, :count]
        metadata = StepMetadata(
            query_start=self._query_start[: count + 1],
            lengths=self._lengths[:count],
            block_table=self._table[:count],
            slots=slots,
            max_query=1,
            max_length=self._table.shape[1] * self._block_size,
            num_decodes=count,
        )
        return StepInputs(ids, positions, metadata)

    def fill(self, inputs: StepInputs, count: int) -> None:
        """Write a decode step, and padding up to `count` requests: one kernel."""
        step, (_, width) = inputs.metadata, self._table.shape
        ids, positions, slots = self._numbers
        block = self._launch.blocks["BLOCK"]
        _stage_step[(count, triton.cdiv(width, block))](
            inputs.input_ids,
            inputs.positions,
            step.slots,
            step.lengths,
            step.block_table,
            ids,
            positions,
            slots,
            self._lengths,
            self._table,
            len(inputs.input_ids),
            step.block_table.shape[1],
            step.block_table.stride(0),
            width,
            PAD_SLOT=PAD_SLOT,
            PAD_LENGTH=PAD_LENGTH,
            **self._launch.blocks,
            **self._launch.options,
        )

    def tensors(self) -> tuple[Tensor, ...]:
        """Everything that a captured program may read."""
        return (self._numbers, self._lengths, self._query_start, self._table)


def prompt_of_padding(tokens: int, block_size: int, device: str) -> StepInputs:
    """A prompt that is stored nowhere, and sees the first block again and again: however small a
    cache is, it has that one."""

    def numbers(*values: int) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    blocks = -(-tokens // block_size)
    positions = torch.arange(tokens, device=device)
    metadata = StepMetadata(
        query_start=numbers(0, tokens),
        lengths=numbers(tokens),
        block_table=torch.zeros((1, blocks), dtype=torch.int32, device=device),
        slots=torch.full_like(positions, PAD_SLOT),
        max_query=tokens,
        max_length=tokens,
        num_decodes=int(tokens == 1),
    )
    return StepInputs(torch.zeros_like(positions), positions, metadata)


# Sizes and places of a step's tensors differ from step to step: one compiled kernel for all.
_OF_THE_STEP = ["ids_N", "positions_N", "slots_N", "lengths_N", "table_NW", "N", "W", "stride_W"]


@triton.jit(do_not_specialize=_OF_THE_STEP)
def _stage_step(
    ids_N,
    positions_N,
    slots_N,
    lengths_N,
    table_NW,
    ids_P,
    positions_P,
    slots_P,
    lengths_P,
    table_PB,
    N,
    W,
    stride_W,
    B,
    PAD_SLOT: tl.constexpr,
    PAD_LENGTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program writes BLOCK entries of one request's block table; the first also its numbers."""
    row = tl.program_id(0)
    entry = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    real = row < N
    blocks = tl.load(table_NW + row * stride_W + entry, mask=real & (entry < W), other=0)
    tl.store(table_PB + row * B + entry, blocks, mask=entry < B)
    if tl.program_id(1) == 0:
        tl.store(ids_P + row, tl.load(ids_N + row, mask=real, other=0))
        tl.store(positions_P + row, tl.load(positions_N + row, mask=real, other=0))
        tl.store(slots_P + row, tl.load(slots_N + row, mask=real, other=PAD_SLOT))
        tl.store(lengths_P + row, tl.load(lengths_N + row, mask=real, other=PAD_LENGTH))
