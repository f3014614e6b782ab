"""Native kernels of the engine's CPU platform, called with ctypes.

Functions take addresses and sizes; `src/*.cpp` says what each expects. Nothing here knows torch.
"""

from engine_cpu_kernels.library import Dtype, isa, isas, library

__all__ = ["Dtype", "isa", "isas", "library"]
