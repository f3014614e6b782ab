"""The Acme NPU with static shapes, as contract 1.2 was.

Importing this module imports no torch and no driver.
"""

from collections.abc import Sequence
from importlib.util import find_spec

from engine.config import DeviceChoice, EngineConfig
from engine.platform import Availability, DeviceProfile, Platform, PlatformSpec, hookimpl


@hookimpl
def engine_platforms() -> Sequence[PlatformSpec]:
    return [
        PlatformSpec(
            name="frozen_1_2",
            api=(1, 2),
            probe=probe,
            create=create,
            priority=-10,
            refuses=refuses,
            profile=profile,
        )
    ]


def probe() -> Availability:
    if find_spec("torch") is None:
        return Availability(0, "torch is not installed; pip install torch")
    return Availability(1, "1 x Acme NPU (simulated by torch on the CPU), 2 GiB")


def create(config: EngineConfig, rank: int) -> Platform:
    from engine_frozen_1_2.platform import AcmePlatform  # imports torch

    return AcmePlatform(config, rank)


def refuses(words: Sequence[str]) -> str | None:
    unknown = sorted(set(words) - {"small"})
    return f"there is no {unknown[0]!r}; it knows 'small'" if unknown else None


def profile(device: str) -> DeviceProfile:
    small = "small" in DeviceChoice.parse(device).words
    return DeviceProfile(
        name="Acme NPU",
        memory_bytes=2**30 if small else 2**31,
        bandwidth=1e11,
        flops={"float32": 1e12, "bfloat16": 4e12},
        launch_s=1e-4,
        source="made up",
    )
