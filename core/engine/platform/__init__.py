"""Everything a platform author needs, and the only part of core a platform imports."""

from engine.hooks import hookimpl
from engine.platform.attention import (
    AttentionBackend,
    AttentionSpec,
    KVCache,
    KVLayout,
    Packed,
    Prologue,
    StepMetadata,
)
from engine.platform.base import API_VERSION, Availability, Capabilities, Platform, PlatformSpec
from engine.platform.comm import Communicator, SoloCommunicator
from engine.platform.graph import (
    EagerRunner,
    Forward,
    GraphRunner,
    Logits,
    MakeInputs,
    StepInputs,
)
from engine.platform.memory import MemoryProfiler, MemorySnapshot
from engine.platform.ops import OpTable
from engine.platform.profile import DeviceProfile, Validation
from engine.platform.runner import Pending, Runner
from engine.platform.shapes import Load, Shape, ShapeBuckets, StepLimits

__all__ = [
    "API_VERSION",
    "AttentionBackend",
    "AttentionSpec",
    "Availability",
    "Capabilities",
    "Communicator",
    "DeviceProfile",
    "EagerRunner",
    "Forward",
    "GraphRunner",
    "KVCache",
    "KVLayout",
    "Load",
    "Logits",
    "MakeInputs",
    "MemoryProfiler",
    "MemorySnapshot",
    "OpTable",
    "Packed",
    "Pending",
    "Platform",
    "PlatformSpec",
    "Prologue",
    "Runner",
    "Shape",
    "ShapeBuckets",
    "SoloCommunicator",
    "StepInputs",
    "StepLimits",
    "StepMetadata",
    "Validation",
    "hookimpl",
]
