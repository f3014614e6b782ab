"""The host in the place of a GPU, for platforms of `engine_triton`."""

from contextlib import ExitStack
from dataclasses import replace
from functools import cache

import torch
from recorded import Recorded, record

from engine_cpu.memory import HostMemory
from engine_triton import interpreter
from engine_triton.architecture import Architecture
from engine_triton.device import Device
from engine_triton.platform import TritonPlatform

GIB = 1 << 30

#: Launch parameters with which a kernel of the kit's tiny model is few programs: each costs as much
#: as a large one. Tests of kernels have smaller blocks, whose borders short tests cross.
FEW_PROGRAMS = {
    "attention_decode": {"BLOCK_M": 16, "BLOCK_N": 64, "LEAST_TILES": 1, "WAVES": 2},
    "attention_merge": {"MOST_SPLITS": 2, "BLOCK_D": 64},
    "attention_prologue": {"ROWS": 128},
    "rms_norm": {"ROWS": 64},
    "multiply": {"BLOCK": 128},
}


class HostGpu(Device):
    """A device of 4 GiB; what the process holds is held of them."""

    name = "cpu:0"

    def __init__(self) -> None:
        self.recordings: list[Recorded] = []
        self._host = HostMemory()
        self._peak = ExitStack()

    def synchronize(self):
        """Nothing runs beside the host."""

    def memory(self):
        return max(0, 4 * GIB - self._host.snapshot().used), 4 * GIB

    def reserved(self):
        found = self._host.snapshot()
        return found.used, found.peak

    def forget_peak(self):
        self._peak.close()
        self._peak.enter_context(self._host.measure())

    def release_cached(self):
        self._peak.close()
        self._host.release_cached()

    def to_host(self, x: torch.Tensor):
        """The copy is made now, as a stream makes it before what is started later."""
        copy = x.clone()
        return lambda: copy

    def capture(self, work):
        self.recordings.append(record(work))
        return self.recordings[-1].recording


def few_programs(architecture: Architecture) -> Architecture:
    """The same chip with larger blocks, where these serve: heads that share keys fit BLOCK_M."""
    kernels = dict(architecture.kernels)
    for name, blocks in FEW_PROGRAMS.items():
        fits = {"at_most": {"group": 16}} if name == "attention_decode" else {}
        kernels[name] = [{"blocks": blocks, **fits}, *kernels[name]]
    return replace(architecture, kernels=kernels)


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
            return few_programs(Architecture.current())

        def own_memory(self):
            return lambda: None

        def register_collectives(self):
            """torch knows gloo."""

    return OnHost
