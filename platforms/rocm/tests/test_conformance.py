"""The ROCm platform keeps the platform contract, with the host in place of the device.

The levels that are quick in Triton's interpreter; test_platform.py starts engines.
"""

import pytest
from triton_on_cpu import spec

from engine.testing.conformance import PlatformTests


class TestOnTheHost(PlatformTests):
    levels = ("discovery",)

    @pytest.fixture
    def platform(self):
        return spec("rocm_on_cpu")
