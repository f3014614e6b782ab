"""Event streams end in every case, and close what is behind them."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from engine.server.sse import ClientLeftError, EventStream, unless_disconnected


class Work:
    closed = 0

    async def aclose(self) -> None:
        self.closed += 1


async def stays() -> dict[str, Any]:
    await asyncio.Event().wait()
    raise AssertionError("unreachable")


async def leaves() -> dict[str, Any]:
    await asyncio.sleep(0)
    return {"type": "http.disconnect"}


async def test_a_stream_is_sent_in_order_and_ended() -> None:
    sent: list[Any] = []

    async def events() -> AsyncGenerator[bytes, None]:
        yield b"one"
        yield b"two"

    async def send(message: Any) -> None:
        sent.append(message)

    work = Work()
    await EventStream(events(), work)({"type": "http"}, stays, send)
    start, *bodies = sent
    assert start["status"] == 200
    assert (b"content-type", b"text/event-stream; charset=utf-8") in start["headers"]
    assert b"content-length" not in dict(start["headers"])
    assert [(each["body"], each["more_body"]) for each in bodies] == [
        (b"one", True),
        (b"two", True),
        (b"", False),
    ]
    assert work.closed == 1


@pytest.mark.parametrize("blocks_in", ["events", "send"])
async def test_a_client_that_leaves_closes_events_and_work(blocks_in: str) -> None:
    closed = False

    async def events() -> AsyncGenerator[bytes, None]:
        nonlocal closed
        try:
            yield b"one"
            await stays()
        finally:
            closed = True

    async def send(message: Any) -> None:
        if blocks_in == "send" and message["type"] == "http.response.body":
            await stays()

    async def leaves_later() -> dict[str, Any]:
        await asyncio.sleep(0.05)
        return {"type": "http.disconnect"}

    work = Work()
    await EventStream(events(), work)({"type": "http"}, leaves_later, send)
    assert closed
    assert work.closed == 1


async def test_a_client_that_left_already_still_closes_the_work() -> None:
    async def events() -> AsyncGenerator[bytes, None]:
        await stays()
        yield b""

    async def send(message: Any) -> None:
        await stays()

    work = Work()
    await EventStream(events(), work)({"type": "http"}, leaves, send)
    assert work.closed == 1


async def test_work_ends_with_its_result_its_error_or_its_client() -> None:
    async def gives() -> int:
        return 5

    async def fails() -> int:
        raise ValueError("broken")

    assert await unless_disconnected(stays, gives()) == 5
    with pytest.raises(ValueError, match="broken"):
        await unless_disconnected(stays, fails())
    with pytest.raises(ClientLeftError):
        await unless_disconnected(leaves, stays())
