"""What this CPU can do in a second, measured in one or two: for `engine plan` and `simulate`.

Measured are the linear layers that the engine would use: nearly all of a step's time goes there.
"""

import json
import time
from collections.abc import Callable
from functools import cache
from importlib.resources import files

import torch
from torch import Tensor
from torch.nn import functional

from engine.platform import DeviceProfile, Validation
from engine_cpu import native
from engine_cpu.memory import HostMemory
from engine_cpu.processor import Processor

DTYPES = ("bfloat16", "float32", "float16")
#: The host's own work, in seconds: of a step, of a layer in it, of a request in it. Round numbers
#: near what the steps of a very small model cost on a Xeon at 2.5 GHz.
LAUNCH_S, LAYER_S, REQUEST_S = 400e-6, 20e-6, 30e-6
#: Weights that no cache holds, and rows that keep the arithmetic busy.
STREAMED = (8, 4096, 2048)
BUSY_ROWS, BUSY = 256, (2048, 2048)
#: Seconds for each rate.
MEASURE_S = 0.4


@cache
def measure() -> DeviceProfile:
    """Of this machine, as it is now: a busy neighbour counts."""
    processor = Processor()
    return DeviceProfile(
        name="cpu",
        memory_bytes=HostMemory().snapshot().total,
        bandwidth=_bandwidth(),
        flops={dtype: _flops(getattr(torch, dtype)) for dtype in DTYPES},
        launch_s=LAUNCH_S,
        layer_s=LAYER_S,
        request_s=REQUEST_S,
        overlap=0.0,  # a core waits for what it reads
        source=f"measured just now: {processor.describe()}, {torch.get_num_threads()} threads",
        validation=_validation(processor),
    )


def _validation(processor: Processor) -> Validation | None:
    """How far predictions were off where they were validated: only for that processor."""
    text = files(__package__).joinpath("validation.json").read_text(encoding="utf-8")
    found = json.loads(text)
    if found.pop("processor") != processor.model:
        return None
    return Validation(**found)


def _bandwidth() -> float:
    """Bytes/s at which one token's linear layers read their weights."""
    count, rows, columns = STREAMED
    weight = torch.ones(rows, columns, dtype=torch.bfloat16)
    layers = [_linear(weight) for _ in range(count)]
    x = torch.ones(1, columns, dtype=torch.bfloat16)

    def read() -> None:
        for layer in layers:
            layer(x)

    return count * weight.nbytes / _seconds(read)


def _flops(dtype: torch.dtype) -> float:
    """Operations/s of many tokens' linear layer."""
    layer = _linear(torch.ones(BUSY, dtype=dtype))
    x = torch.ones(BUSY_ROWS, BUSY[1], dtype=dtype)
    return 2 * BUSY_ROWS * BUSY[0] * BUSY[1] / _seconds(lambda: layer(x))


def _linear(weight: Tensor) -> Callable[[Tensor], Tensor]:
    if native.available() is None:
        from engine_cpu.native.linear import linear

        return linear(weight, None)
    return lambda x: functional.linear(x, weight)


@torch.inference_mode()
def _seconds(work: Callable[[], object]) -> float:
    """The quickest of many runs: what the machine can do, not what its neighbours leave."""
    work()
    found: list[float] = []
    until = time.perf_counter() + MEASURE_S
    while (began := time.perf_counter()) < until or not found:
        work()
        found.append(time.perf_counter() - began)
    return min(found)
