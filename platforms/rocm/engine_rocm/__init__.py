"""The ROCm platform: AMD's GPUs, through torch and the Triton kernels of `engine_triton`.

Importing this package imports neither torch nor triton, and asking for devices touches no driver.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from engine.config import EngineConfig
from engine.platform import Availability, DeviceProfile, Platform, PlatformSpec, hookimpl
from engine_rocm import installed, sheets


@hookimpl
def engine_platforms() -> Sequence[PlatformSpec]:
    return [
        PlatformSpec(
            name="rocm",
            api=(1, 4),
            probe=probe,
            create=create,
            priority=100,
            defaults=defaults,
            environment=environment,
            profile=profile,
        )
    ]


def probe() -> Availability:
    return installed.probe()


def create(config: EngineConfig, rank: int) -> Platform:
    from engine_rocm.platform import RocmPlatform  # brings torch, which probing must not

    return RocmPlatform(config, rank)


def defaults() -> Mapping[str, Any]:
    """Of the first GPU here. Nobody has tuned them on hardware."""
    return sheets.defaults(installed.models())


def environment(rank: int) -> Mapping[str, str]:
    """Kernel arguments in the device's own memory: a launch then reads nothing over the bus (AMD's
    guide to inference on MI300X)."""
    return {"HIP_FORCE_DEV_KERNARG": "1"}


def profile(device: str) -> DeviceProfile | None:
    return sheets.profile(installed.models())
