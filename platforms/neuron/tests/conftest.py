"""On the host, the platform is that of tests/support/neuron_on_cpu.py."""

import os
from collections.abc import Iterator
from pathlib import Path

import neuron_on_cpu
import pytest
import torch

from engine.testing.checks import tiny_model
from engine_neuron import installed


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> str:
    """The folder of a tiny random Llama."""
    return str(tiny_model.make(tmp_path_factory.mktemp("tiny-model")))


@pytest.fixture
def kernels_here(monkeypatch) -> None:
    """As on a machine with the vendor's library: the kernels serve what they can."""
    monkeypatch.setattr(installed, "missing_kernels", lambda: None)


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch) -> None:
    """Programs are kept in a folder of the test's own, and other processes find the stand-in."""
    monkeypatch.setenv("PYTHONPATH", str(Path(neuron_on_cpu.__file__).parent), prepend=os.pathsep)
    monkeypatch.setenv("ENGINE_PROGRAM_CACHE", str(tmp_path))
    for variable in ("TORCH_NEURONX_NEFF_CACHE_DIR", "NEURON_COMPILE_CACHE_URL"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
