"""What the native kernels do for the CPU platform.

Everything here needs the distribution `engine-cpu-kernels`; `available()` tells whether it is
there, and is the one thing to import when it may not be. Without it the platform computes with
torch.
"""

import os
from functools import cache

import torch

#: "0" keeps the kernels out of use: to compare, or to work around.
VARIABLE = "ENGINE_CPU_NATIVE"

#: How the library numbers the dtypes it computes in.
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def available() -> str | None:
    """Why the native kernels cannot be used, or None when they can."""
    if os.environ.get(VARIABLE) == "0":
        return f"{VARIABLE} is 0"
    return _loaded()


@cache
def _loaded() -> str | None:
    try:
        from engine_cpu_kernels import library

        library()
    except ImportError:
        return (
            "engine-cpu-kernels is not installed; with a C++ compiler:"
            " pip install ./platforms/cpu/kernels"
        )
    except (OSError, ValueError, AttributeError) as error:
        return f"engine-cpu-kernels cannot be loaded: {error}"
    return None


def refuses(*, dtype: str, device: str, **_: object) -> str | None:
    """Why the kernels do not serve a layer of these facts, or None when they do."""
    if not device.startswith("cpu"):
        return f"it computes on the CPU, not on {device}"
    names = [str(each).removeprefix("torch.") for each in DTYPES]
    return None if dtype in names else f"dtype {dtype} is not one of {', '.join(names)}"
