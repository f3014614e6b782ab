"""The Acme NPU whose programs end with the logits, as contract 1.4 was.

Importing this module imports no torch and no driver.
"""

from collections.abc import Sequence
from importlib.util import find_spec

from engine.config import EngineConfig
from engine.platform import Availability, Platform, PlatformSpec, hookimpl


@hookimpl
def engine_platforms() -> Sequence[PlatformSpec]:
    return [PlatformSpec(name="frozen_1_4", api=(1, 4), probe=probe, create=create, priority=-10)]


def probe() -> Availability:
    if find_spec("torch") is None:
        return Availability(0, "torch is not installed; pip install torch")
    return Availability(1, "1 x Acme NPU (simulated by torch on the CPU), 2 GiB")


def create(config: EngineConfig, rank: int) -> Platform:
    from engine_frozen_1_4.platform import AcmePlatform  # imports torch

    return AcmePlatform(config, rank)
