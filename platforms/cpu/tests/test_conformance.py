"""The CPU platform keeps the platform contract."""

import pytest

import engine_cpu
from engine.testing.conformance import PlatformTests


class TestCpu(PlatformTests):
    @pytest.fixture
    def platform(self):
        [spec] = engine_cpu.engine_platforms()
        return spec
