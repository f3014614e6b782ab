"""The platform's own code keeps the contract, with device and backends replaced by the CPU's."""

import gaudi_on_cpu
import pytest

from engine.testing.conformance import PlatformTests


class TestGaudiOnCpu(PlatformTests):
    """The levels that need no engine: an engine compiles its programs for half a minute, so
    test_platform.py starts one."""

    levels = ("discovery", "memory", "ops", "attention")

    @pytest.fixture
    def platform(self):
        [spec] = gaudi_on_cpu.engine_platforms()
        return spec
