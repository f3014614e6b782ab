"""The Acme NPU keeps the platform contract."""

import pytest

import engine_acme_npu
from engine.testing.conformance import PlatformTests


class TestAcme(PlatformTests):
    @pytest.fixture
    def platform(self):
        [spec] = engine_acme_npu.engine_platforms()
        return spec
