"""The Acme NPU with a prologue of its own and copies that wait for nobody, as contract 1.3 was.

Importing this module imports no torch and no driver.
"""

from collections.abc import Sequence
from importlib.util import find_spec

from engine.config import EngineConfig
from engine.platform import Availability, Platform, PlatformSpec, hookimpl


@hookimpl
def engine_platforms() -> Sequence[PlatformSpec]:
    return [PlatformSpec(name="frozen_1_3", api=(1, 3), probe=probe, create=create, priority=-10)]


def probe() -> Availability:
    if find_spec("torch") is None:
        return Availability(0, "torch is not installed; pip install torch")
    return Availability(1, "1 x Acme NPU (simulated by torch on the CPU), 2 GiB")


def create(config: EngineConfig, rank: int) -> Platform:
    from engine_frozen_1_3.platform import AcmePlatform  # imports torch

    return AcmePlatform(config, rank)
