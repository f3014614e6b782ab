"""The same tests with every instruction set that this library and this processor have.

The kernels are chosen once in a process, so each runs in one of its own; what differs most by
instruction set is tested there: products and attention.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
kernels = pytest.importorskip("engine_cpu_kernels", reason="the native kernels are not there")
try:
    ISAS = kernels.isas()
except OSError as error:
    pytest.skip(f"the native kernels are not built: {error}", allow_module_level=True)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("isa", ISAS[1:])
def test_kernels_are_right_with(isa: str) -> None:
    names = ["test_linear.py"]
    if not isa.startswith("amx"):  # has only linear layers of its own
        names.append("test_attention_kernels.py")
    files = [str(FOLDER / name) for name in names]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-k", "threads1", *files],
        capture_output=True,
        text=True,
        env={**os.environ, "ENGINE_CPU_ISA": isa},
    )
    assert done.returncode == 0, done.stdout[-3000:]


def test_an_instruction_set_that_is_not_here_is_refused() -> None:
    code = "import engine_cpu_kernels; engine_cpu_kernels.library()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "ENGINE_CPU_ISA": "z80"},
    )
    assert "ENGINE_CPU_ISA is 'z80'; this library on this processor has " in done.stderr
