"""What the driver counts for this process, as AMD's management library tells."""

import os
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType


def own_memory(place: str) -> Callable[[], int | None]:
    """What gives the bytes that this process has on the GPU at that place of the bus
    ("0000:c1:00.0"); None where the library is not here, or does not know: in a container its
    process numbers are the machine's.

    The library is amdsmi, which comes with ROCm.
    """
    if find_spec("amdsmi") is None:
        return lambda: None
    try:
        library = import_module("amdsmi")
    except (ImportError, OSError, KeyError):  # its own shared object is not here
        return lambda: None
    return _asker(library, place)


def _asker(smi: ModuleType, place: str) -> Callable[[], int | None]:
    try:
        smi.amdsmi_init()
        gpu = smi.amdsmi_get_processor_handle_from_bdf(place)
    except smi.AmdSmiException:
        return lambda: None

    def ask() -> int | None:
        try:
            running = smi.amdsmi_get_gpu_process_list(gpu)
        except smi.AmdSmiException:
            return None
        own = os.getpid()
        found = (one["memory_usage"]["vram_mem"] for one in running if one["pid"] == own)
        return next(found, None)

    return ask
