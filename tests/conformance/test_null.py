"""The null platform keeps the contract: what the kit checks of the narrow seam."""

import pytest

from engine.testing.conformance import PlatformTests
from engine.testing.null import null_spec


class TestNull(PlatformTests):
    counts_up = True

    @pytest.fixture
    def platform(self):
        return null_spec()
