"""What the driver counts for this process, as NVIDIA's management library tells."""

import os
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType


def own_memory(uuid: str) -> Callable[[], int | None]:
    """What gives the bytes that this process has on the GPU of that UUID ("GPU-…"); None where the
    library is not here, or does not know: in a container its process numbers are the machine's.

    The library is pynvml, of the package nvidia-ml-py.
    """
    if find_spec("pynvml") is None:
        return lambda: None
    return _asker(import_module("pynvml"), uuid)


def _asker(nvml: ModuleType, uuid: str) -> Callable[[], int | None]:
    try:
        nvml.nvmlInit()
        gpu = nvml.nvmlDeviceGetHandleByUUID(uuid)
    except nvml.NVMLError:
        return lambda: None

    def ask() -> int | None:
        try:
            running = nvml.nvmlDeviceGetComputeRunningProcesses(gpu)
        except nvml.NVMLError:
            return None
        own = os.getpid()
        return next((one.usedGpuMemory for one in running if one.pid == own), None)

    return ask
