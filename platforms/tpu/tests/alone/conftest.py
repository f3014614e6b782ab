"""Tests that need a process of their own: torchax gives torch's spare device a name, and jax starts
with as many simulated chips as it is told. `test_alone.py` beside this folder runs them."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

ALONE = "ENGINE_TPU_TESTS_ALONE"
collect_ignore_glob = [] if os.environ.get(ALONE) else ["test_*.py"]


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> str:
    """The folder of a tiny random Llama."""
    from engine.testing.checks import tiny_model

    return str(tiny_model.make(tmp_path_factory.mktemp("tiny-model")))


@pytest.fixture(autouse=True, scope="session")
def program_cache(tmp_path_factory) -> Iterator[Path]:
    """One for all tests: what one compiled, the next need not."""
    folder = tmp_path_factory.mktemp("programs")
    os.environ["ENGINE_PROGRAM_CACHE"] = str(folder)
    yield folder
    del os.environ["ENGINE_PROGRAM_CACHE"]
