"""How much of the device the important operations reach: shares of what the device itself does.

The device's own rates are measured here, too: bytes that a plain copy moves, and operations of a
plain matrix product. A share over 1 means that torch's own copy or product is slower than the
platform's kernels. The floor is low on purpose: it finds what is broken, not what is slow.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from engine import ops
from engine.platform import AttentionSpec, OpTable, StepMetadata
from engine.testing.checks.case import Case
from engine.testing.checks.numbers import DTYPES
from engine.testing.checks.subject import Subject

#: Of the device's own rate.
FLOOR = 0.1

#: Seconds that each thing is repeated for; the best time counts.
MEASURE_S = 0.4
#: A product that takes so long is large enough to show the device's rate.
PRODUCT_S = 0.02
#: Bytes of what is read: much more than caches hold, where the device has room for it.
READ_BYTES = 256 * 2**20
SHARE_OF_FREE = 8

HEADS, KV_HEADS, HEAD_DIM, REQUESTS = 32, 8, 128, 16
WIDTH = 4096
PREFILL = 512  # tokens


@dataclass(frozen=True, slots=True)
class _Device:
    subject: Subject
    dtype: torch.dtype

    @property
    def name(self) -> str:
        return self.subject.platform.device

    @property
    def room(self) -> int:
        """Bytes that one tensor may have."""
        free = self.subject.platform.memory().snapshot().free
        return min(READ_BYTES, free // SHARE_OF_FREE)

    def numbers(self, *shape: int) -> Tensor:
        random = torch.Generator().manual_seed(0)
        return torch.randn(*shape, generator=random).to(self.dtype).to(self.name)

    def seconds(self, function: Callable[[], object]) -> float:
        """The least time of one call, with the wait for the device."""
        synchronize = self.subject.platform.synchronize
        best, until, runs = float("inf"), time.perf_counter() + MEASURE_S, 0
        while runs < 3 or time.perf_counter() < until:
            began = time.perf_counter()
            function()
            synchronize()
            best, runs = min(best, time.perf_counter() - began), runs + 1
        return best

    def bandwidth(self) -> float:
        """Bytes/s that a copy reads and writes."""
        source = torch.ones(self.room, dtype=torch.uint8, device=self.name)
        target = torch.empty_like(source)
        return 2 * source.numel() / self.seconds(lambda: target.copy_(source))

    def rate(self) -> float:
        """Operations/s of a square matrix product, in the dtype in which torch is fastest."""
        return max(self._rate(DTYPES[one]) for one in self.subject.capabilities.dtypes)

    def _rate(self, dtype: torch.dtype) -> float:
        size = 512
        while True:
            left, right = (self.numbers(size, size).to(dtype) for _ in range(2))
            took_s = self.seconds(lambda: left @ right)  # noqa: B023  # called at once
            if took_s >= PRODUCT_S or 16 * size * size * dtype.itemsize > self.room:
                return 2 * size**3 / took_s
            size *= 2


def decode_attention(device: _Device) -> tuple[float, float]:
    """Bytes/s of keys and values that one token of each of 16 requests reads."""
    capabilities = device.subject.capabilities
    size, dtype = capabilities.block_sizes[0], capabilities.dtypes[0]
    spec = AttentionSpec(
        num_heads=HEADS,
        num_kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        block_size=size,
        dtype=dtype,
        kv_dtype=dtype if dtype in capabilities.kv_dtypes else capabilities.kv_dtypes[0],
        scale=HEAD_DIM**-0.5,
    )
    backend = device.subject.platform.attention(spec)
    block_bytes = backend.kv_layout().bytes_per_block
    blocks = max(1, device.room // block_bytes // REQUESTS)
    plan = backend.plan(_decode(blocks, size, device.name))
    cache = backend.allocate(REQUESTS * blocks)
    q = device.numbers(REQUESTS, HEADS, HEAD_DIM)
    k, v = (device.numbers(REQUESTS, KV_HEADS, HEAD_DIM) for _ in range(2))

    def step() -> None:
        nonlocal cache
        _, cache = backend.forward(q, k, v, cache, plan)

    return REQUESTS * blocks * block_bytes / device.seconds(step), device.bandwidth()


def _decode(blocks: int, size: int, device: str) -> StepMetadata:
    """The last token of requests that each fill their own blocks."""
    table = torch.arange(REQUESTS * blocks, dtype=torch.int32).view(REQUESTS, blocks)
    length = blocks * size
    return StepMetadata(
        query_start=torch.arange(REQUESTS + 1, dtype=torch.int32).to(device),
        lengths=torch.full((REQUESTS,), length, dtype=torch.int32).to(device),
        block_table=table.to(device),
        slots=(table[:, -1].long() * size + size - 1).to(device),
        max_query=1,
        max_length=length,
        num_decodes=REQUESTS,
    )


def skinny_linear(device: _Device) -> tuple[float, float]:
    """Bytes/s of weights that one token reads."""
    outputs = device.room // (WIDTH * device.dtype.itemsize) // 32 * 32
    took_s = _linear(device, tokens=1, outputs=outputs)
    return outputs * WIDTH * device.dtype.itemsize / took_s, device.bandwidth()


def prefill_linear(device: _Device) -> tuple[float, float]:
    """Operations/s of the product that 512 tokens need."""
    took_s = _linear(device, tokens=PREFILL, outputs=WIDTH)
    return 2 * PREFILL * WIDTH * WIDTH / took_s, device.rate()


def _linear(device: _Device, *, tokens: int, outputs: int) -> float:
    """Seconds of the operation as the platform has it."""
    table = OpTable()
    ops.fill(table)
    device.subject.platform.ops(table)
    make = table.choose(
        "linear",
        dtype=device.subject.capabilities.dtypes[0],
        device=device.name,
        quantization=None,
        in_features=WIDTH,
        out_features=outputs,
        bias=False,
    )
    function = make(device.numbers(outputs, WIDTH), None)
    x = device.numbers(tokens, WIDTH)
    return device.seconds(lambda: function(x))


def reaches_the_floor(
    measure: Callable[[_Device], tuple[float, float]],
) -> Callable[[Subject], Mapping[str, float]]:
    def check(subject: Subject) -> Mapping[str, float]:
        """The share of the device's own rate is at least the floor."""
        with torch.inference_mode():
            reached, own = measure(_Device(subject, DTYPES[subject.capabilities.dtypes[0]]))
        share = reached / own
        assert share >= FLOOR, (
            f"{share:.1%} of the device's own rate: {reached:.3g} of {own:.3g} a second; at least"
            f" {FLOOR:.0%} is asked for"
        )
        return {"share": share, "reached": reached, "device": own}

    return check


CASES = tuple(
    Case(id=f"perf/{name}", level="perf", check=reaches_the_floor(measure), wide=True)
    for name, measure in (
        ("decode-attention", decode_attention),
        ("skinny-linear", skinny_linear),
        ("prefill-linear", prefill_linear),
    )
)
