"""The host in the place of a GPU, for platforms of `engine_triton`."""

from functools import cache

import torch
from recorded import Recorded, record

from engine_triton import interpreter
from engine_triton.architecture import Architecture
from engine_triton.device import Device
from engine_triton.platform import TritonPlatform

GIB = 1 << 30


class HostGpu(Device):
    """A device of 4 GiB, of which nothing is held."""

    name = "cpu:0"

    def __init__(self) -> None:
        self.recordings: list[Recorded] = []

    def synchronize(self):
        """Nothing runs beside the host."""

    def memory(self):
        return 4 * GIB, 4 * GIB

    def reserved(self):
        return 0, 0

    def forget_peak(self):
        """It is nothing always."""

    def release_cached(self):
        """There is nothing."""

    def to_host(self, x: torch.Tensor):
        """The copy is made now, as a stream makes it before what is started later."""
        copy = x.clone()
        return lambda: copy

    def capture(self, work):
        self.recordings.append(record(work))
        return self.recordings[-1].recording


@cache
def on_host(platform: type[TritonPlatform], own_name: str) -> type[TritonPlatform]:
    """The platform under another name, with this device in the place of its own."""
    interpreter.switch_on()

    class OnHost(platform):  # type: ignore[misc, valid-type]
        name = own_name
        kind = "cpu"
        collectives = "gloo"

        def open(self, index):
            return HostGpu()

        def examine(self):
            return Architecture.current()

        def own_memory(self):
            return lambda: None

        def register_collectives(self):
            """torch knows gloo."""

    return OnHost
