"""Submissions to an engine that counts, and what its streams bring."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from engine.client import AsyncEngine
from engine.params import SamplingParams
from engine.request import Delta, Submission

Start = Callable[..., Awaitable[AsyncEngine]]

#: Far more than anything here takes; reached only when something hangs.
LIMIT_S = 20.0


def submission(
    id: str = "a", prompt: tuple[int, ...] = (7,), priority: int = 0, **params: Any
) -> Submission:
    return Submission(id, prompt, SamplingParams(temperature=0, **params), priority)


async def collect(engine: AsyncEngine, asked: Submission) -> list[Delta]:
    return [delta async for delta in engine.stream(asked)]


def tokens(deltas: list[Delta], index: int = 0) -> list[int]:
    return [token for delta in deltas if delta.index == index for token in delta.tokens]


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            await asyncio.sleep(0.005)
