"""The engine process and its clients: apart (`AsyncEngine`) or in process (`InProcessEngine`)."""

from engine.client.async_engine import AsyncEngine
from engine.client.in_process import InProcessEngine
from engine.client.stream import DeltaStream

__all__ = ["AsyncEngine", "DeltaStream", "InProcessEngine"]
