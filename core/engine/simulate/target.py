"""What is predicted: a model on a kind of device, every setting decided as the engine does it."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine import assemble
from engine.config import EngineConfig, resolve
from engine.errors import UnsupportedError
from engine.facts import ModelFacts
from engine.hookcalls import blaming
from engine.models import read_facts
from engine.platform import MemorySnapshot
from engine.platform.base import Capabilities, PlatformSpec
from engine.platform.profile import DeviceProfile
from engine.platform.shapes import ShapeBuckets
from engine.plugins import PluginManager
from engine.simulate.cost import TimeModel
from engine.simulate.model import ModelSize, read_size

RANK = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """`memory` is the device's before anything is loaded: this one's, or an empty one's."""

    config: EngineConfig
    facts: ModelFacts
    size: ModelSize
    capabilities: Capabilities
    chosen: assemble.Chosen
    buckets: ShapeBuckets | None
    profile: DeviceProfile | None  # None: the platform has none, and speed cannot be predicted
    platform: str
    memory: MemorySnapshot
    memory_kind: str  # of its `MemoryProfiler`

    def time_model(self) -> TimeModel:
        """
        Raises:
            UnsupportedError: the platform has no profile, or none that serves these settings.
        """
        if self.profile is None:
            raise UnsupportedError(
                f"platform {self.platform!r} has no profile of what its device can do in a second,"
                " so speed cannot be predicted for it"
            )
        return TimeModel(
            self.size,
            self.profile,
            dtype=self.chosen.dtype,
            kv_dtype=self.chosen.kv_dtype,
            block_size=self.chosen.block_size,
            quantization=self.config.quantization,
            ranks=self.config.tensor_parallel,
            buckets=self.buckets,
        )


def find_target(settings: Mapping[str, Any], plugins: PluginManager | None = None) -> Target:
    """Decide everything as `assemble` does, and load nothing.

    Raises:
        EngineError: as `assemble`.
    """
    plugins = plugins or PluginManager()
    device = str(settings.get("device", "auto"))
    spec = plugins.select(device)
    config = resolve(settings, plugins.defaults(spec)).config
    plugins.hook.engine_check_config(config=config)
    facts = read_facts(config)
    size = read_size(facts, trust_remote_code=config.trust_remote_code)
    for name, value in plugins.environment(spec, RANK).items():
        os.environ.setdefault(name, value)
    profile = _profile(spec, device)
    platform = plugins.create_platform(spec, config, RANK)
    try:
        assemble.check_world(config, platform)
        chosen = assemble.choose(config, facts, platform.capabilities)
        memory = platform.memory()
        return Target(
            config=config,
            facts=facts,
            size=size,
            capabilities=platform.capabilities,
            chosen=chosen,
            buckets=assemble.find_buckets(config, platform, facts, chosen),
            profile=profile,
            platform=spec.name,
            memory=_memory(memory.snapshot(), profile),
            memory_kind=memory.kind,
        )
    finally:
        platform.close()


def accuracy(profile: DeviceProfile | None) -> str:
    """How far predictions for this device were off, in words that stand beside each of them."""
    if profile is None or profile.validation is None:
        return "never validated on this device"
    found = profile.validation
    return (
        f"validated on {profile.name} with {found.models}: median error {found.median_error:.0%},"
        f" worst {found.worst_error:.0%}"
    )


def _profile(spec: PlatformSpec, device: str) -> DeviceProfile | None:
    with blaming(f"platform {spec.name!r}", "broke in profile()"):
        return spec.profile(device)


def _memory(here: MemorySnapshot, profile: DeviceProfile | None) -> MemorySnapshot:
    """This device's memory, where the profile is of this one; else an empty device's."""
    if profile is None or profile.memory_bytes == here.total:
        return here
    return MemorySnapshot(total=profile.memory_bytes, free=profile.memory_bytes, used=0, peak=0)
