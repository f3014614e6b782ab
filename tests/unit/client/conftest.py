from collections.abc import AsyncIterator
from typing import Any

import psutil
import pytest

from engine.client import AsyncEngine

from .streams import Start


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    engines: list[AsyncEngine] = []

    async def start_one(target: str = "counting", **settings: Any) -> AsyncEngine:
        engines.append(await AsyncEngine.start(settings, target=f"counting_engine:{target}"))
        return engines[-1]

    yield start_one
    for engine in engines:
        await engine.close()
        assert not psutil.pid_exists(engine.pid)
