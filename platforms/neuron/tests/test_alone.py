"""Runs the tests of the folder `alone`, each module in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "alone"
ENVIRONMENT = {
    "ENGINE_NEURON_TESTS_ALONE": "1",
    "JAX_PLATFORMS": "cpu",
    "JAX_ENABLE_X64": "1",  # torch's whole numbers have 64 bits
    "OMP_NUM_THREADS": "1",
    "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
}


@pytest.mark.parametrize("module", sorted(path.name for path in FOLDER.glob("test_*.py")))
def test_what_needs_a_process_of_its_own(module):
    command = [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, str(FOLDER / module)],
        env={**os.environ, **ENVIRONMENT},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=280,
    )
    if done.returncode == pytest.ExitCode.NO_TESTS_COLLECTED:
        pytest.skip(done.stdout.strip()[-400:])
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
