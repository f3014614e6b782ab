import pytest

from engine.config import EngineConfig
from engine.testing.checks import tiny_model
from engine_sim.platform import SimPlatform


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """The folder of a tiny random Llama."""
    return str(tiny_model.make(tmp_path_factory.mktemp("tiny-model")))


@pytest.fixture
def sim():
    """Makes platforms as `--device` asks, and gives their devices back as they were."""
    made = []

    def make(device="sim", **settings):
        made.append(SimPlatform(EngineConfig(device=device, **settings)))
        return made[-1]

    yield make
    for platform in made:
        platform.close()
        SimPlatform(EngineConfig(device=f"sim:{platform.chip.index}"))
