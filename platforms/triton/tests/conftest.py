"""Kernels run in Triton's interpreter (the repository's conftest.py switches it on)."""

from collections.abc import Iterator

import pytest
import torch
from captured_steps import Host

from engine_triton import interpreter
from engine_triton.architecture import Architecture

interpreter.switch_on()


@pytest.fixture(scope="session")
def architecture() -> Architecture:
    """Of the host: the interpreter."""
    return Architecture.current()


@pytest.fixture
def host() -> Host:
    """A device that records work for captured steps."""
    return Host()


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
