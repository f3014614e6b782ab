"""What the device remembers of the requests it works on: one row each, until released.

Shape legend: R rows, L tokens of the longest context, B blocks of the longest context, S tokens
a block, T tokens of the step, N requests of the step.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.batch import Admission, Batch, Slice
from engine.platform import StepInputs, StepMetadata


@dataclass(frozen=True, slots=True)
class Arranged:
    """A batch in the order in which the device computes it: requests with one token first."""

    slices: tuple[Slice, ...]
    order: tuple[int, ...]  # slices[i] is batch.slices[order[i]]
    rows: tuple[int, ...]
    query_start: tuple[int, ...]  # [N+1]


class RequestTable:
    """Tokens live on the device, so a step may use one that the host has not seen yet."""

    def __init__(self, num_rows: int, max_length: int, block_size: int, device: str) -> None:
        self.block_size = block_size
        self.device = device
        # One column more: the last token of a full context is stored, though never computed.
        self.tokens_RL = torch.zeros(num_rows, max_length + 1, dtype=torch.int32, device=device)
        num_blocks = -(-max_length // block_size)
        self.blocks_RB = torch.zeros(num_rows, num_blocks, dtype=torch.int32, device=device)
        self.admissions: dict[int, Admission] = {}  # by key
        self._rows: dict[int, int] = {}  # key to row
        self._free = list(reversed(range(num_rows)))

    def row(self, key: int) -> int:
        return self._rows[key]

    def admit(self, admission: Admission) -> int:
        row = self._free.pop()
        self._rows[admission.key] = row
        self.admissions[admission.key] = admission
        tokens = torch.tensor(admission.tokens, dtype=torch.int32)
        self.tokens_RL[row, : len(tokens)] = tokens.to(self.device)
        self.blocks_RB[row] = 0
        return row

    def release(self, key: int) -> int | None:
        """The row that became free; None for a key that is not known."""
        row = self._rows.pop(key, None)
        if row is not None:
            del self.admissions[key]
            self._free.append(row)
        return row

    def arrange(self, batch: Batch) -> Arranged:
        sizes = [part.stop - part.start for part in batch.slices]
        order = sorted(range(len(sizes)), key=lambda i: sizes[i] > 1)
        query_start = [0]
        for i in order:
            query_start.append(query_start[-1] + sizes[i])
        slices = tuple(batch.slices[i] for i in order)
        rows = tuple(self._rows[part.key] for part in slices)
        return Arranged(slices, tuple(order), rows, tuple(query_start))

    def update_blocks(self, step: Arranged) -> None:
        """Write the block table entries that changed."""
        rows: list[int] = []
        entries: list[int] = []
        blocks: list[int] = []
        for part, row in zip(step.slices, step.rows, strict=True):
            rows += [row] * len(part.blocks)
            entries += range(part.blocks_from, part.blocks_from + len(part.blocks))
            blocks += part.blocks
        if rows:
            at = self._to_device(np.array([rows, entries]))
            self.blocks_RB[at[0], at[1]] = self._to_device(np.array(blocks, dtype=np.int32))

    def inputs(self, step: Arranged) -> StepInputs:
        """The step's tensors, on the device. Nothing here waits for it."""
        starts = np.array([part.start for part in step.slices])
        stops = np.array([part.stop for part in step.slices])
        query_start = np.array(step.query_start)
        sizes = stops - starts
        positions = np.arange(query_start[-1]) + np.repeat(starts - query_start[:-1], sizes)
        token_rows = np.repeat(np.array(step.rows), sizes)
        max_length = int(stops.max())
        rows_T, positions_T = self._to_device(np.stack([token_rows, positions]))
        blocks_T = self.blocks_RB[rows_T, positions_T // self.block_size].long()
        table = self.blocks_RB[self._to_device(np.array(step.rows))]
        metadata = StepMetadata(
            query_start=self._to_device(query_start.astype(np.int32)),
            lengths=self._to_device(stops.astype(np.int32)),
            block_table=table[:, : -(-max_length // self.block_size)],
            slots=blocks_T * self.block_size + positions_T % self.block_size,
            max_query=int(sizes.max()),
            max_length=max_length,
            num_decodes=int((sizes == 1).sum()),
        )
        return StepInputs(self.tokens_RL[rows_T, positions_T].long(), positions_T, metadata)

    def append(self, rows: Sequence[int], positions: Sequence[int], tokens_M: Tensor) -> None:
        """Store sampled tokens; on the device, so that the next step finds them."""
        at = self._to_device(np.array([rows, positions]))
        self.tokens_RL[at[0], at[1]] = tokens_M.to(torch.int32)

    def _to_device(self, array: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(array).to(self.device, non_blocking=True)
