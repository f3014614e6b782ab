"""Runs the tests of the folder `alone`, each module in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "alone"
ENVIRONMENT = {
    "ENGINE_TPU_TESTS_ALONE": "1",
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
    "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
}
#: What `make test` installs beside the rest, for one module.
TORCH_TPU = {"test_torch_tpu.py": {"PYTHONPATH": str(Path(sys.prefix) / "torch_tpu")}}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("module", sorted(path.name for path in FOLDER.glob("test_*.py")))
def test_what_needs_a_process_of_its_own(module):
    options = ["-rs", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options, str(FOLDER / module)]
    done = subprocess.run(
        command,
        env={**os.environ, **ENVIRONMENT, **TORCH_TPU.get(module, {})},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=850,
    )
    if done.returncode == pytest.ExitCode.NO_TESTS_COLLECTED:
        pytest.skip(done.stdout.strip()[-400:])
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
