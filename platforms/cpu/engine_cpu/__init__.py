"""The CPU platform: the reference of the others, and the default where there is no accelerator.

Importing this package imports no torch. It sees `engine.platform` and its neighbours only, as a
stranger's platform does.
"""

import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from engine.config import EngineConfig
from engine.platform import Availability, DeviceProfile, Platform, PlatformSpec, hookimpl
from engine_cpu.processor import Processor


@hookimpl
def engine_platforms() -> Sequence[PlatformSpec]:
    return [
        PlatformSpec(
            name="cpu",
            api=(1, 5),
            probe=probe,
            create=create,
            priority=0,
            defaults=defaults,
            environment=environment,
            profile=profile,
        )
    ]


def probe() -> Availability:
    """Its devices are its cores: so many ranks may share it, `--device cpu:0,1` among them."""
    if find_spec("torch") is None:
        return Availability(0, "torch is not installed; pip install 'engine[cpu]'")
    kernels = "native kernels" if find_spec("engine_cpu_kernels") else "torch's operations only"
    processor = Processor()
    return Availability(processor.cores, f"{processor.describe()}, {kernels}")


def create(config: EngineConfig, rank: int) -> Platform:
    from engine_cpu.platform import CpuPlatform  # brings torch, which probing must not

    return CpuPlatform(config, rank)


def defaults() -> Mapping[str, Any]:
    """A step computes on the thread that starts it, so there is nothing to overlap it with; and one
    of 2,048 tokens takes seconds, for which nobody should wait between two tokens."""
    return {"overlap": False, "step_target_s": 0.25}


def environment(rank: int) -> Mapping[str, str]:
    """Threads of one rank, read by the OpenMP runtimes when torch is loaded.

    torch itself starts a thread for every core of the machine, also where a container or another
    rank leaves us fewer. And a thread that waits for the others spins for milliseconds: when a
    neighbour holds the core that one of them needs, all of the rest is wasted, for every operation
    anew. Measured beside four busy processes on two cores: 236 ms a step with the runtime's own
    choice, 27 ms with this one, 25 ms without any spinning.
    """
    ranks = max(1, int(os.environ.get("WORLD_SIZE", "1")))
    threads = max(1, Processor().cores // ranks)
    return {
        "OMP_NUM_THREADS": str(threads),
        "GOMP_SPINCOUNT": "1000",  # GNU: turns of the loop, a few microseconds
        "KMP_BLOCKTIME": "0",  # LLVM and Intel: milliseconds
    }


def profile(device: str) -> DeviceProfile:
    from engine_cpu.rates import measure  # brings torch

    return measure()
