"""The simulated device keeps the platform contract, eager and with static shapes."""

from pathlib import Path

import pytest

import engine_sim
from engine.testing.checks import Subject
from engine.testing.conformance import PlatformTests

[SPEC] = engine_sim.engine_platforms()


class TestSim(PlatformTests):
    @pytest.fixture
    def platform(self):
        return SPEC


@pytest.fixture(scope="module")
def static(model):
    subject = Subject(SPEC, Path(model), device="sim:static")
    yield subject
    subject.close()


class TestStaticSim(PlatformTests):
    """What programs for fixed shapes change; the rest is the same code."""

    levels = ("runner", "scheduler", "shapes")

    @pytest.fixture
    def subject(self, static):
        return static
