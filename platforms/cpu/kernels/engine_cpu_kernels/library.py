"""Finds and loads the shared library."""

import ctypes
import os
from ctypes import c_char_p, c_float, c_int, c_int32, c_int64, c_void_p
from enum import IntEnum
from functools import cache
from pathlib import Path

#: Names another library: one with sanitizers, or one under development.
VARIABLE = "ENGINE_CPU_KERNELS_LIBRARY"


class Dtype(IntEnum):
    """As the library numbers them."""

    float32 = 0
    bfloat16 = 1
    float16 = 2
    int8 = 3


#: Result and arguments of each function.
SIGNATURES = {
    "ek_isa": (c_char_p, ()),
    "ek_isa_present": (c_char_p, (c_int,)),
    "ek_isa_on": (c_char_p, (c_void_p, c_char_p, c_int)),
    "ek_set_threads": (None, (c_int,)),
    "ek_threads": (c_int, ()),
    "ek_tape_new": (c_void_p, (c_int64,)),
    "ek_tape_extend": (c_void_p, (c_void_p, c_int64)),
    "ek_tape_free": (None, (c_void_p,)),
    "ek_tape_begin": (None, (c_void_p,)),
    "ek_tape_end": (None, ()),
    "ek_tape_length": (c_int64, (c_void_p,)),
    "ek_tape_run": (None, (c_void_p, c_int64)),
    "ek_attention_plan_new": (
        c_void_p,
        (c_int64,) * 5 + (c_float, c_float, c_int32, c_int32),
    ),
    "ek_attention_plan_free": (None, (c_void_p,)),
    "ek_attention_unit_bytes": (c_int64, (c_int64, c_int32)),
    "ek_attention_plan": (
        None,
        (c_void_p,) * 4 + (c_int64, c_void_p, c_int64, c_int64, c_int32),
    ),
    "ek_attention_plan_merges": (c_int64, (c_void_p,)),
    "ek_attention": (
        c_int,
        (c_void_p,) + (c_void_p, c_int64, c_int64) * 3 + (c_void_p, c_void_p, c_int64),
    ),
    "ek_linear_bytes": (c_int64, (c_int64, c_int64, c_int32)),
    "ek_linear_pack": (None, (c_void_p, c_int64, c_void_p, c_int64, c_int64, c_int32)),
    "ek_linear_look_up": (c_int, (c_void_p, c_void_p, c_void_p, c_int64, c_int32, c_int64)),
    "ek_linear": (
        c_int,
        (
            c_void_p,
            c_int64,
            c_void_p,
            c_void_p,
            c_void_p,
            c_int64,
            c_int64,
            c_int64,
            c_int32,
            c_int32,
            c_int64,
        ),
    ),
    "ek_quantized_bytes": (c_int64, (c_int64, c_int64, c_int32)),
    "ek_quantized_pack": (
        None,
        (c_void_p, c_int64, c_void_p, c_int64, c_int64, c_int32, c_int32),
    ),
    "ek_quantized_look_up": (
        c_int,
        (c_void_p, c_void_p, c_void_p, c_int64, c_int32, c_int32, c_int64),
    ),
    "ek_quantized_linear": (
        c_int,
        (
            c_void_p,
            c_int64,
            c_void_p,
            c_void_p,
            c_void_p,
            c_int64,
            c_int64,
            c_int64,
            c_int32,
            c_int32,
            c_int32,
            c_int64,
        ),
    ),
    "ek_rms_norm": (
        c_int,
        (
            c_void_p,
            c_int64,
            c_int64,
            c_int64,
            c_void_p,
            c_void_p,
            c_int64,
            c_float,
            c_int32,
            c_int32,
            c_int64,
        ),
    ),
    "ek_add_rms_norm": (
        c_int,
        (
            c_void_p,
            c_int64,
            c_void_p,
            c_int64,
            c_void_p,
            c_void_p,
            c_void_p,
            c_int64,
            c_float,
            c_int32,
            c_int32,
            c_int64,
        ),
    ),
    "ek_rotary_angles": (
        c_int,
        (c_void_p, c_void_p, c_int64, c_float, c_void_p, c_void_p, c_int64),
    ),
    "ek_rotary": (
        c_int,
        (c_void_p, c_int64, c_int64, c_int64, c_void_p) * 2
        + (c_void_p, c_void_p, c_int64, c_int64, c_int32, c_int64),
    ),
    "ek_silu_and_multiply": (c_int, (c_void_p, c_int64, c_void_p, c_int64, c_int32, c_int64)),
    "ek_gelu_tanh_and_multiply": (c_int, (c_void_p, c_int64, c_void_p, c_int64, c_int32, c_int64)),
    "ek_embedding": (
        c_int,
        (c_void_p, c_void_p, c_int64, c_int64, c_void_p, c_int64, c_int32, c_int64),
    ),
    "ek_argmax": (c_int, (c_void_p, c_int64, c_int64, c_void_p, c_void_p, c_int64)),
    "ek_sample": (c_int, (c_void_p, c_int64, c_int64, *(c_void_p,) * 8, c_int64)),
}


@cache
def library() -> ctypes.CDLL:
    """The library, its functions declared.

    Raises:
        OSError: it is not there, or not for this machine.
        ValueError: ENGINE_CPU_ISA names an instruction set that is not here.
    """
    path = os.environ.get(VARIABLE) or str(_installed())
    found = ctypes.CDLL(path)
    for name, (result, arguments) in SIGNATURES.items():
        function = getattr(found, name)
        function.restype, function.argtypes = result, arguments
    if found.ek_isa() is None:
        wanted = os.environ.get("ENGINE_CPU_ISA")
        raise ValueError(
            f"ENGINE_CPU_ISA is {wanted!r}; this library on this processor has"
            f" {', '.join(_isas(found))}"
        )
    return found


def isa() -> str:
    """The instruction set whose kernels run."""
    return str(library().ek_isa().decode())


def isas() -> list[str]:
    """All that could be asked for, best first."""
    return _isas(library())


def _isas(found: ctypes.CDLL) -> list[str]:
    names, index = [], 0
    while (name := found.ek_isa_present(index)) is not None:
        names.append(name.decode())
        index += 1
    return names


def _installed() -> Path:
    folder = Path(__file__).parent
    for name in ("libengine_cpu_kernels.so", "libengine_cpu_kernels.dylib"):
        if (folder / name).is_file():
            return folder / name
    raise OSError(f"no shared library in {folder}: the package was installed without being built")
