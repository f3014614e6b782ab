"""On the host, the platform is that of tests/support/triton_on_cpu.py."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import triton_on_cpu

from engine.testing.checks import tiny_model


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    """The folder of a tiny random Llama."""
    return tiny_model.make(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture(autouse=True)
def other_processes_find_the_stand_in(monkeypatch) -> None:
    folder = str(Path(triton_on_cpu.__file__).parent)
    monkeypatch.setenv("PYTHONPATH", folder, prepend=os.pathsep)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
