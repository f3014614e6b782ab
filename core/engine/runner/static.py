"""Steps on a device with static shapes: padded to a bucket on the way in, cut on the way out."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from engine.errors import UnsupportedError
from engine.platform import GraphRunner, Shape, ShapeBuckets, StepInputs
from engine.platform.graph import Forward, Logits
from engine.runner.table import Arranged, Indices, Padding, RequestTable


class StaticSteps:
    """`spare_block` is a block that no request has; what is computed for padding goes there."""

    def __init__(self, buckets: ShapeBuckets, table: RequestTable, *, host_logits: bool) -> None:
        self.buckets = buckets
        self._table = table
        self._host_logits = host_logits
        self.spare_block = 0

    def padding(self, step: Arranged) -> Padding:
        """
        Raises:
            UnsupportedError: no bucket holds the step, and the platform wants to hear of it.
        """
        sizes_N = step.stops_N - step.starts_N
        num_blocks = -(-int(step.stops_N.max()) // self._table.block_size)
        exact = Shape(int(sizes_N.sum()), len(sizes_N), num_blocks, bool((sizes_N == 1).all()))
        return self.pad_to(self._fit(exact))

    def pad_to(self, shape: Shape) -> Padding:
        block, slot = self.buckets.pad_block, self.buckets.pad_slot
        spare_slot = self.spare_block * self._table.block_size
        return Padding(
            shape,
            block=self.spare_block if block is None else block,
            slot=spare_slot if slot is None else slot,
        )

    def make_inputs(self, shape: Shape) -> StepInputs:
        """A step of this shape that is nothing but padding."""
        nothing = np.zeros(0, dtype=np.int64)
        start = np.zeros(1, dtype=np.int64)
        return self._table.inputs(
            Arranged((), (), nothing, nothing, nothing, start, 0, 0, 0, 0), self.pad_to(shape)
        )

    def logits(
        self, graphs: GraphRunner, project: Logits, hidden_TC: Tensor, shape: Shape
    ) -> Callable[[Indices], Tensor]:
        """What gives logits [M, V] of M rows of the step, on the device that samples."""

        def some(rows: Indices) -> Tensor:
            padded = np.zeros(shape.requests, dtype=np.int64)
            padded[: len(rows)] = rows
            logits_NV = graphs.project(project, hidden_TC, self._table.to_device(padded))
            return (logits_NV.to("cpu") if self._host_logits else logits_NV)[: len(rows)]

        def all_of(rows: Indices) -> Tensor:
            most = shape.requests
            parts = [some(rows[start : start + most]) for start in range(0, len(rows), most)]
            return parts[0] if len(parts) == 1 else torch.cat(parts)

        return all_of

    def warm_up(self, graphs: GraphRunner, forward: Forward, project: Logits) -> None:
        """Let the device make every program of a step before the first request."""

        def make_inputs(
            num_requests: int, num_tokens: int, shape: Shape | None = None
        ) -> StepInputs:
            decode = num_requests == num_tokens
            return self.make_inputs(shape or self._fit(Shape(num_tokens, num_requests, 1, decode)))

        graphs.warm_up(forward, make_inputs)
        smallest = {(one.tokens, one.requests): one for one in sorted(self.buckets.shapes())[::-1]}
        for shape in smallest.values():
            hidden_TC = graphs.run(forward, self.make_inputs(shape))
            self.logits(graphs, project, hidden_TC, shape)(np.zeros(1, dtype=np.int64))

    def _fit(self, exact: Shape) -> Shape:
        found = self.buckets.fit(exact.tokens, exact.requests, exact.blocks, decode=exact.decode)
        if found is not None:
            return found
        if self.buckets.missing == "compile":
            return exact
        known = ", ".join(map(str, sorted(self.buckets.shapes())))
        raise UnsupportedError(
            f"no program was compiled for a step of this shape: {exact}; there are: {known}; let"
            " the platform declare a bucket for it"
        )
