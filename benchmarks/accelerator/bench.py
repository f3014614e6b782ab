"""Times of the engine's operations and of libraries, on one device."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from accelerator import ceilings
from accelerator.job import Job, Parts
from accelerator.models import SHAPES
from accelerator.paged import spec_of
from accelerator.records import OURS, Fact, Record, Value
from accelerator.timing import Call, Timed, time_calls


class Bench:
    """Times on one device, and the floors of what is timed there."""

    def __init__(self, job: Job, parts: Parts) -> None:
        self.job, self.parts = job, parts
        self.ceilings = ceilings.of(job.facts)
        self.dtype = spec_of(SHAPES["tiny-llama"], parts.platform).dtype

    def floor(self, num_bytes: float, operations: float = 0.0, fp8: bool = False) -> float:
        """Seconds."""
        rate = self.ceilings.bf16_flops
        if fp8 and self.ceilings.fp8_flops:
            rate = self.ceilings.fp8_flops
        return max(num_bytes / self.ceilings.bytes_per_s, operations / rate)

    def ours(self, name: str, calls: Sequence[Call], floor_s: float) -> Iterator[Record]:
        timed = time_calls(calls, self.job.device)
        if self.job.on_gpu and not timed.captured:
            yield Fact(f"{name}, launched by the host", "it could not be captured in a graph")
        yield self._value(name, OURS, timed, floor_s)

    def anchor(self, name: str, who: str, calls: Sequence[Call]) -> Iterator[Record]:
        """Nothing where the library refuses."""
        try:
            timed = time_calls(calls, self.job.device)
        except (RuntimeError, ValueError, NotImplementedError) as error:
            self.job.synchronize()  # raises where the device itself is broken
            yield Fact(f"{name}, {who}", f"refused: {str(error).splitlines()[0][:120]}")
            return
        yield self._value(name, who, timed, None)

    def choose(self, operation: str, dtype: str | None = None, **facts: Any) -> Callable[..., Any]:
        return self.parts.table.choose(
            operation, dtype=dtype or self.dtype, device=self.parts.platform.device, **facts
        )

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.job.device).to(getattr(torch, self.dtype))

    @staticmethod
    def _value(name: str, who: str, timed: Timed, floor_s: float | None) -> Value:
        floor = None if floor_s is None else 1e6 * floor_s
        return Value(name, who, 1e6 * timed.seconds, "us", floor=floor)
