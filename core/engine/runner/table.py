"""What the device remembers of the requests it works on: one row each, until released.

Sampled tokens are known to the device before the host has seen them, so tokens live there. Where
the KV lies is the host's decision, so block tables stay on the host, and a step's numbers travel
together in two arrays.

Shape legend: R rows, L places for the longest context's tokens, B blocks of the longest context,
T tokens of the step, N requests of the step, W blocks of the step's longest request, M sampled.
"""

from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.batch import Admission, Batch, Slice
from engine.ops.staging import send
from engine.platform import Shape, StepInputs, StepMetadata

Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Arranged:
    """A batch in the order in which the device computes it: requests with one token first."""

    slices: tuple[Slice, ...]
    order: tuple[int, ...]  # slices[i] is batch.slices[order[i]]
    rows_N: Indices
    starts_N: Indices
    stops_N: Indices
    query_start: Indices  # [N+1]
    num_tokens: int
    num_decodes: int  # requests with one token
    max_query: int
    max_length: int


@dataclass(frozen=True, slots=True)
class Padding:
    """What fills a step up to a shape."""

    shape: Shape
    block: int
    slot: int


class RequestTable:
    """
    Args:
        tokens_on: where the tokens are kept, if not on the device that computes.
        pinned: as `engine.ops.staging.send` says.
    """

    def __init__(
        self,
        num_rows: int,
        max_length: int,
        block_size: int,
        device: str,
        tokens_on: str | None = None,
        *,
        pinned: bool = False,
    ) -> None:
        self.block_size = block_size
        self.device = device
        self.tokens_on = tokens_on or device
        self._pinned = pinned
        # One column more: the last token of a full context is stored, though never computed.
        size = (num_rows, max_length + 1)
        self.tokens_RL = torch.zeros(size, dtype=torch.int32, device=self.tokens_on)
        self._all_tokens = self.tokens_RL.view(-1)
        self._places_a_row = max_length + 1
        num_blocks = -(-max_length // block_size)
        self.blocks_RB = np.zeros((num_rows, num_blocks), dtype=np.int32)
        self.admissions: dict[int, Admission] = {}  # by key
        self._rows: dict[int, int] = {}  # key to row
        self._free = list(reversed(range(num_rows)))

    def row(self, key: int) -> int:
        return self._rows[key]

    def admit(self, admission: Admission) -> int:
        row = self._free.pop()
        self._rows[admission.key] = row
        self.admissions[admission.key] = admission
        tokens = np.array(admission.tokens, dtype=np.int32)
        self.tokens_RL[row, : len(tokens)] = self._to_tokens(tokens)
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
        order = sorted(range(len(batch.slices)), key=lambda i: _is_long(batch.slices[i]))
        slices = tuple(batch.slices[i] for i in order)
        rows = [self._rows[part.key] for part in slices]
        starts = [part.start for part in slices]
        stops = [part.stop for part in slices]
        sizes = [part.stop - part.start for part in slices]
        rows_N, starts_N, stops_N = np.array([rows, starts, stops], dtype=np.int64)
        return Arranged(
            slices,
            tuple(order),
            rows_N,
            starts_N,
            stops_N,
            query_start=np.array([0, *accumulate(sizes)], dtype=np.int64),
            num_tokens=sum(sizes),
            num_decodes=sizes.count(1),
            max_query=max(sizes),
            max_length=max(stops),
        )

    def update_blocks(self, step: Arranged) -> None:
        """Write the block table entries that changed."""
        for part, row in zip(step.slices, step.rows_N, strict=True):
            if part.blocks:
                stop = part.blocks_from + len(part.blocks)
                self.blocks_RB[row, part.blocks_from : stop] = part.blocks

    def inputs(self, step: Arranged, padding: Padding | None = None) -> StepInputs:
        """The step's tensors, on the device. Nothing here waits for it."""
        sizes_N = step.stops_N - step.starts_N
        rows_T, positions_T = step.rows_N, step.starts_N
        if step.query_start[-1] > len(sizes_N):
            rows_T = np.repeat(rows_T, sizes_N)
            shift_N = positions_T - step.query_start[:-1]
            positions_T = np.arange(step.query_start[-1]) + np.repeat(shift_N, sizes_N)
        blocks_T, offsets_T = np.divmod(positions_T, self.block_size)
        slots_T = self.blocks_RB[rows_T, blocks_T] * np.int64(self.block_size) + offsets_T
        places_T = rows_T * self._places_a_row + positions_T
        numbers = np.array([places_T, positions_T, slots_T])
        if padding is not None:
            numbers = _pad(numbers, padding)
        if self.tokens_on != self.device:
            tokens = self._all_tokens[torch.from_numpy(numbers[0])].numpy()
            ids, positions, slots = self.to_device(np.array([tokens, *numbers[1:]]))
        else:
            places, positions, slots = self.to_device(numbers)
            ids = self._all_tokens.index_select(0, places).long()
        if padding is not None:
            metadata = self._padded_metadata(step, slots, padding)
        else:
            metadata = self._metadata(step, slots)
        return StepInputs(ids, positions, metadata)

    def append(self, rows_M: Indices, positions_M: Indices, tokens_M: Tensor) -> None:
        """Store sampled tokens; on the device, so that the next step finds them."""
        places = rows_M * self._places_a_row + positions_M
        self._all_tokens.index_copy_(0, self._to_tokens(places), tokens_M.to(torch.int32))

    def to_device(self, array: NDArray[np.generic]) -> Tensor:
        return send(array, self.device, pinned=self._pinned)

    def _to_tokens(self, array: NDArray[np.generic]) -> Tensor:
        """To where the requests' tokens are."""
        pinned = self._pinned and self.tokens_on == self.device
        return send(array, self.tokens_on, pinned=pinned)

    def _metadata(self, step: Arranged, slots: Tensor) -> StepMetadata:
        table_NW = self.blocks_RB[step.rows_N, : -(-step.max_length // self.block_size)]
        size, count = table_NW.size, len(step.slices)
        packed = np.empty(size + 2 * count + 1, dtype=np.int32)
        packed[:size] = table_NW.ravel()
        packed[size:-count] = step.query_start
        packed[-count:] = step.stops_N
        block_table, query_start, lengths = self.to_device(packed).split_with_sizes(
            [size, count + 1, count]
        )
        return StepMetadata(
            query_start=query_start,
            lengths=lengths,
            block_table=block_table.view(table_NW.shape),
            slots=slots,
            max_query=step.max_query,
            max_length=step.max_length,
            num_decodes=step.num_decodes,
        )

    def _padded_metadata(self, step: Arranged, slots: Tensor, padding: Padding) -> StepMetadata:
        shape, count = padding.shape, len(step.slices)
        num_blocks_N1 = -(-step.stops_N[:, None] // self.block_size)
        table_NW = np.full((shape.requests, shape.blocks), padding.block, dtype=np.int32)
        known_NW = self.blocks_RB[step.rows_N, : shape.blocks]
        width = known_NW.shape[1]  # less than the bucket's, where that is larger than the context
        used_NW = np.arange(width) < num_blocks_N1
        table_NW[:count, :width] = np.where(used_NW, known_NW, padding.block)
        query_start = np.full(shape.requests + 1, step.query_start[-1], dtype=np.int32)
        query_start[: count + 1] = step.query_start
        lengths_N = np.zeros(shape.requests, dtype=np.int32)
        if shape.decode:
            query_start = np.arange(shape.requests + 1, dtype=np.int32)
            lengths_N[:] = 1
        lengths_N[:count] = step.stops_N
        return StepMetadata(
            query_start=self.to_device(query_start),
            lengths=self.to_device(lengths_N),
            block_table=self.to_device(table_NW),
            slots=slots,
            max_query=1 if shape.decode else shape.tokens,
            max_length=shape.blocks * self.block_size,
            num_decodes=shape.requests if shape.decode else 0,
        )


def _pad(numbers_3T: Indices, padding: Padding) -> Indices:
    """Places, positions and slots of the step's tokens, and after them of what fills it up."""
    missing = padding.shape.tokens - numbers_3T.shape[1]
    rest = np.array([[0], [0], [padding.slot]])
    return np.concatenate([numbers_3T, rest.repeat(missing, axis=1)], axis=1)


def _is_long(part: Slice) -> bool:
    return part.stop - part.start > 1
