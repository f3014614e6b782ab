"""Tests that need a process of their own: torchax gives torch's spare device a name, and jax keeps
whole numbers of 64 bits only if it starts so. `test_alone.py` beside this folder runs them."""

import os

import pytest

ALONE = "ENGINE_NEURON_TESTS_ALONE"
collect_ignore_glob = [] if os.environ.get(ALONE) else ["test_*.py"]


@pytest.fixture(autouse=True)
def no_inference_mode():
    """What torch.export traces is no inference."""
    import torch

    with torch.no_grad():
        yield
