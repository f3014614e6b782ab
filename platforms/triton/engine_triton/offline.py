"""Kernels compiled for a chip that is not here, by the package's own host code.

A stand-in for Triton's driver says that the chip is there and keeps what it is given to load:

    host function -> kernel[grid](...) -> Triton's compiler for the chip -> binary -> `Usage`

Argument types, alignment and constants are thus those of real calls. Nothing is launched: tensors
lie on the host, and outputs keep what was in them. One process serves one chip.
"""

import json
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime import driver

from engine_triton.architecture import Architecture

_MAX_THREADS = 1024  # of a block, on every chip of the tables


@dataclass(frozen=True, slots=True)
class Usage:
    """What one compiled kernel needs of its chip."""

    kernel: str
    warps: int  # of a block
    registers: int  # of a lane, vectors
    spilled_bytes: int  # of a lane, into local memory
    shared_memory: int  # bytes of a block
    matrix: tuple[str, ...]  # the matrix instructions in it, as the tables name them
    binary: int  # bytes


@contextmanager
def standing_in(architecture: Architecture) -> Iterator[list[Usage]]:
    """Within, kernels are compiled for `architecture` when they are launched, and only then.

    Yields a list that gets the usage of every launch. A kernel that needs more shared memory than
    a block may use raises Triton's `OutOfResources`.

    Raises:
        RuntimeError: the interpreter is on, so nothing can be compiled.
    """
    if knobs.runtime.interpret or architecture.interpreted:
        raise RuntimeError("kernels cannot be compiled in Triton's interpreter: switch it off")
    stand_in = _StandIn(architecture)
    driver.set_active(stand_in)
    knobs.runtime.kernel_load_start_hook.add(stand_in.note_files)
    try:
        yield stand_in.launched
    finally:
        knobs.runtime.kernel_load_start_hook.remove(stand_in.note_files)
        driver._active = None  # `reset_active` would look for a real one


class _StandIn(DriverBase):  # type: ignore[misc]
    """A driver of one chip. Its own `utils`, which load binaries and know properties."""

    def __init__(self, architecture: Architecture) -> None:
        self.launched: list[Usage] = []
        self.utils = self
        self._architecture = architecture
        self._files: Mapping[str, str] = {}  # of the kernel that is loaded next
        launched = self.launched

        class Launcher:
            def __init__(self, source: object, metadata: object) -> None:
                """Nothing is prepared."""

            def __call__(self, x: int, y: int, z: int, stream: int, usage: Usage, *_: Any) -> None:
                launched.append(usage)

        self.launcher_cls = Launcher

    def note_files(
        self, module: object, function: object, name: str, files: Mapping[str, str], key: str
    ) -> None:
        self._files = files

    def load_binary(
        self, name: str, binary: bytes, shared: int, device: int
    ) -> tuple[object, Usage, int, int, int]:
        usage = _usage(self._architecture, name, binary, shared, self._files)
        return object(), usage, usage.registers, usage.spilled_bytes, _MAX_THREADS

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {
            "max_shared_mem": self._architecture.shared_memory,
            "multiprocessor_count": self._architecture.processors,
            "warpSize": self._architecture.warp_size,
        }

    def get_current_target(self) -> GPUTarget:
        name = self._architecture.chip
        arch = int(name[3:]) if name.startswith("sm_") else name
        return GPUTarget(self._architecture.backend, arch, self._architecture.warp_size)

    @classmethod
    def is_active(cls) -> bool:
        return True

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_benchmarker(self) -> Any:
        raise RuntimeError("nothing can be measured on a chip that is not here")


def _usage(
    architecture: Architecture, name: str, binary: bytes, shared: int, files: Mapping[str, str]
) -> Usage:
    """Of one kernel, from its assembly and what the vendor's tools print."""
    table = architecture.assembly
    by_suffix = {Path(path).suffix[1:]: Path(path) for path in files.values()}
    assembly = by_suffix[table["text"]].read_text()
    printed = _run_tool(table, binary) if "usage_tool" in table else assembly
    metadata = json.loads(by_suffix["json"].read_text())
    return Usage(
        kernel=name,
        warps=metadata["num_warps"],
        registers=_sum(printed, [table["registers"]]),
        spilled_bytes=_sum(printed, table["spilled_bytes"]),
        shared_memory=shared,
        matrix=tuple(one for one, form in table["matrix"].items() if re.search(form, assembly)),
        binary=len(binary),
    )


def _run_tool(table: Mapping[str, Any], binary: bytes) -> str:
    tool = attrgetter(table["usage_tool"])(knobs).path
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        file.write(binary)
        file.flush()
        command = [tool, *table["usage_arguments"], file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _sum(text: str, patterns: Sequence[str]) -> int:
    """Of the numbers that the patterns find: each of them must be there.

    Raises:
        ValueError: one is not, so nothing is known of the kernel.
    """
    found = [re.search(pattern, text) for pattern in patterns]
    if not all(found):
        raise ValueError(f"{patterns} are not all in what the compiler says: {text[:500]}")
    return sum(int(match[1]) for match in found if match)
