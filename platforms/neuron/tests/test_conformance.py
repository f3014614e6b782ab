"""The Neuron platform keeps the platform contract, with the host in place of the device.

The levels that need no engine: an engine compiles its programs for half a minute, so
test_programs.py starts few.
"""

import pytest
from neuron_on_cpu import host_spec

from engine.testing.conformance import PlatformTests


class TestOnTheHost(PlatformTests):
    """With attention in torch's operations."""

    levels = ("memory", "attention")

    @pytest.fixture
    def platform(self):
        return host_spec()


@pytest.mark.usefixtures("kernels_here")
class TestWithTheKernelsReferences(PlatformTests):
    """With attention laid out for the vendor's kernels, where these serve."""

    levels = ("attention",)

    @pytest.fixture
    def platform(self):
        return host_spec()
