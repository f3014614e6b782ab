"""The library under test."""

import ctypes

import pytest


@pytest.fixture(scope="session")
def lib() -> ctypes.CDLL:
    kernels = pytest.importorskip("engine_cpu_kernels", reason="the native kernels are not there")
    try:
        found: ctypes.CDLL = kernels.library()
    except OSError as error:
        pytest.skip(f"the native kernels are not built: {error}")
    return found
