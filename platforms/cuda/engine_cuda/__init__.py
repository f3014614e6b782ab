"""The CUDA platform: NVIDIA's GPUs, through torch and the Triton kernels of `engine_triton`.

Importing this package imports neither torch nor triton, and asking for devices touches no driver.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from engine.config import EngineConfig
from engine.platform import Availability, DeviceProfile, Platform, PlatformSpec, hookimpl
from engine_cuda import installed, sheets, words


@hookimpl
def engine_platforms() -> Sequence[PlatformSpec]:
    return [
        PlatformSpec(
            name="cuda",
            api=(1, 4),
            probe=probe,
            create=create,
            priority=100,
            defaults=defaults,
            environment=environment,
            profile=profile,
            refuses=words.refuses,
        )
    ]


def probe() -> Availability:
    return installed.probe()


def create(config: EngineConfig, rank: int) -> Platform:
    from engine_cuda.platform import CudaPlatform  # brings torch, which probing must not

    return CudaPlatform(config, rank)


def defaults() -> Mapping[str, Any]:
    """Of the first GPU here. Nobody has tuned them on hardware."""
    return sheets.defaults(installed.models())


def environment(rank: int) -> Mapping[str, str]:
    """Indices count as in `nvidia-smi`; the runtime would put the fastest GPU first."""
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def profile(device: str) -> DeviceProfile | None:
    return sheets.profile(installed.models())
