"""Server-sent events, and noticing that a client left."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from typing import Any, Final, Protocol, TypeVar

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

T = TypeVar("T")

DONE: Final = b"data: [DONE]\n\n"


def event(value: msgspec.Struct) -> bytes:
    """JSON has no line breaks of its own, so an event is always one line."""
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


class Closable(Protocol):
    async def aclose(self) -> None: ...


class ClientLeftError(Exception):
    """The client closed its connection; nobody is there to be answered."""


class EventStream(Response):
    """Sends what `events` gives, and ends right after it. `events` and the `work` behind them are
    closed in any case, also when the client leaves in the middle, or before the first event.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None], work: Closable) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._work = work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await unless_disconnected(receive, self._send(send))
        except ClientLeftError:
            pass
        finally:
            await self._events.aclose()
            await self._work.aclose()

    async def _send(self, send: Send) -> None:
        head = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(head)
        async for event in self._events:
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def unless_disconnected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled if the client leaves before it is there.

    The request's body must have been read: from then on `receive` has one message to give.

    Raises:
        ClientLeftError: the client left.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientLeftError
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
