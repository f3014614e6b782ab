"""A simulated accelerator as a platform of engine. Importing this module imports no torch.

The device computes right numbers, on the host, and keeps its own books: memory, operations, copies,
synchronizations, simulated time. README.md has the words of `--device sim:WORD,…`.
"""

from collections.abc import Sequence
from importlib.util import find_spec

from engine.config import DeviceChoice, EngineConfig
from engine.platform import Availability, DeviceProfile, Platform, PlatformSpec, hookimpl
from engine_sim.words import DEVICES, MEMORY, read, refuses


@hookimpl
def engine_platforms() -> Sequence[PlatformSpec]:
    return [
        PlatformSpec(
            name="sim",
            api=(1, 2),
            probe=probe,
            create=create,
            priority=-1000,  # never in the place of a device that exists
            refuses=refuses,
            profile=profile,
        )
    ]


def probe() -> Availability:
    if find_spec("torch") is None:
        return Availability(0, "torch is not installed; pip install torch")
    return Availability(DEVICES, f"{DEVICES} x simulated accelerator, {MEMORY >> 30} GiB each")


def create(config: EngineConfig, rank: int) -> Platform:
    from engine_sim.platform import SimPlatform  # imports torch

    return SimPlatform(config, rank)


def profile(device: str) -> DeviceProfile | None:
    """Of the device that a word names; of the simulated one itself where none does."""
    return read(DeviceChoice.parse(device).words).profile
