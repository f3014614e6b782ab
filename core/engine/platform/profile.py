"""What a device can do in a second, as data: from a data sheet, or measured."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Validation:
    """How far predictions from a profile were off: shares of what was measured."""

    models: str  # on which
    median_error: float
    worst_error: float


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceProfile:
    """Peak rates and what of them is reached. Predictions are made from these numbers alone."""

    name: str
    memory_bytes: int
    bandwidth: float  # bytes/s, to the device's own memory
    flops: Mapping[str, float]  # operations/s of dense matrix products, by dtype
    launch_s: float  # what a step costs beside bytes and operations: launches, the host's work
    layer_s: float = 0.0  # what each of its layers adds to that
    request_s: float = 0.0  # what each of its requests adds
    reached_bandwidth: float = 1.0  # share of `bandwidth` that kernels reach
    reached_flops: float = 1.0  # share of `flops`
    overlap: float = 1.0  # share of the shorter of reading and computing that the longer one hides
    link_bandwidth: float = 0.0  # bytes/s to another device, one direction; 0: there is no link
    link_latency_s: float = 0.0  # of one message
    watts: float | None = None
    source: str = ""  # where the numbers come from: a document, or the command that measured them
    validation: Validation | None = None  # None: nobody has compared predictions with the device
