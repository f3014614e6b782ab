"""The processor: how many cores this process may keep busy, and what they can do.

Read without torch, for `engine platforms` and before torch is imported.
"""

import math
import os
import platform
from pathlib import Path

import psutil

from engine_cpu.cgroups import Cgroups

#: Instruction sets worth telling people about, as the kernel spells them.
NOTABLE = {
    "amx_bf16": "AMX-BF16",
    "amx_int8": "AMX-INT8",
    "avx512_bf16": "AVX512-BF16",
    "avx512_vnni": "AVX512-VNNI",
    "avx512f": "AVX512",
    "avx2": "AVX2",
    "sve2": "SVE2",
    "i8mm": "I8MM",
    "bf16": "BF16",
    "asimd": "NEON",
}
#: Any of these multiplies bfloat16 matrices in hardware.
NATIVE_BFLOAT16 = frozenset({"amx_bf16", "avx512_bf16", "bf16", "svebf16"})


class Processor:
    """`root` stands for / in tests. What cannot be read is left out, never guessed."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._info = _read_info(root / "proc/cpuinfo")

    @property
    def model(self) -> str:
        return self._info.get("model name") or platform.processor() or platform.machine()

    @property
    def instructions(self) -> frozenset[str]:
        """Instruction sets, as the kernel spells them."""
        text = self._info.get("flags") or self._info.get("Features") or ""
        return frozenset(text.split())

    @property
    def native_bfloat16(self) -> bool:
        return not self.instructions.isdisjoint(NATIVE_BFLOAT16)

    @property
    def cores(self) -> int:
        """Physical cores that this process may use, as far as its quota of time goes.

        A second thread on one core brings nothing here: both want the same vector units.
        """
        allowed = _allowed_cpus()
        cores = {self._core(cpu) for cpu in allowed}
        quota = Cgroups(self._root).cpu_quota()
        # Half a core's worth is worth a thread; less stalls the others at every barrier.
        whole = math.floor(quota + 0.5) if quota is not None else len(cores)
        return max(1, min(len(cores), whole))

    def describe(self) -> str:
        """ "8 x Some CPU @ 2.5GHz, AVX512-VNNI", for people."""
        found = [name for flag, name in NOTABLE.items() if flag in self.instructions]
        if "AVX512" in found:
            found = [name for name in found if name != "AVX2"]
        return ", ".join([f"{self.cores} x {self.model}", *found])

    def _core(self, cpu: int) -> tuple[str, str]:
        """What tells physical cores apart; the number itself where the kernel does not say."""
        folder = self._root / f"sys/devices/system/cpu/cpu{cpu}/topology"
        try:
            package = (folder / "physical_package_id").read_text().strip()
            return package, (folder / "core_id").read_text().strip()
        except OSError:
            return "", str(cpu)


def _allowed_cpus() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(psutil.cpu_count(logical=False) or 1))


def _read_info(path: Path) -> dict[str, str]:
    """The first processor's entries; empty where there is no such file."""
    try:
        text = path.read_text()
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}
