"""Everything a platform author needs, and the only part of core a platform imports."""

from engine.hooks import hookimpl
from engine.platform.attention import (
    AttentionBackend,
    AttentionSpec,
    KVCache,
    KVLayout,
    StepMetadata,
)
from engine.platform.base import API_VERSION, Availability, Capabilities, Platform, PlatformSpec
from engine.platform.comm import Communicator, SoloCommunicator
from engine.platform.graph import EagerRunner, Forward, GraphRunner, StepInputs
from engine.platform.memory import MemoryProfiler, MemorySnapshot
from engine.platform.ops import OpTable
from engine.platform.runner import Pending, Runner

__all__ = [
    "API_VERSION",
    "AttentionBackend",
    "AttentionSpec",
    "Availability",
    "Capabilities",
    "Communicator",
    "EagerRunner",
    "Forward",
    "GraphRunner",
    "KVCache",
    "KVLayout",
    "MemoryProfiler",
    "MemorySnapshot",
    "OpTable",
    "Pending",
    "Platform",
    "PlatformSpec",
    "Runner",
    "SoloCommunicator",
    "StepInputs",
    "StepMetadata",
    "hookimpl",
]
