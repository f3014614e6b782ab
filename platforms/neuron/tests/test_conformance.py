"""The Neuron platform keeps the platform contract, with the host in place of the device.

Left out is what needs a process for each case: of ranks, test_communicator.py has a part; that an
engine's process may end is no matter of the platform.
"""

import pytest
from neuron_on_cpu import host_spec

from engine.testing.checks import LEVELS, cases
from engine.testing.conformance import PlatformTests


class TestOnTheHost(PlatformTests):
    """With attention in torch's operations."""

    def pytest_generate_tests(self, metafunc):
        chosen = [case for level in LEVELS for case in cases(level) if level != "ranks"]
        chosen = [case for case in chosen if not case.id.startswith("faults/process/")]
        metafunc.parametrize("case", chosen, ids=[case.id for case in chosen])

    @pytest.fixture
    def platform(self):
        return host_spec()


@pytest.mark.usefixtures("kernels_here")
class TestWithTheKernelsReferences(PlatformTests):
    """With attention laid out for the vendor's kernels, where these serve."""

    levels = ("attention", "runner")

    @pytest.fixture
    def platform(self):
        return host_spec()
