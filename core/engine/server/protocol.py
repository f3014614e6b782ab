"""The HTTP parser's bounds, and its errors in the API's shape."""

import asyncio
from typing import Final

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from engine.server.openai.errors import HttpError

MAX_HEAD_BYTES: Final = 64 * 1024  # request line and headers
HEAD_TIMEOUT_S: Final = 60.0  # for a new connection's, or a begun, head to be there


class BoundedHttpProtocol(HttpToolsProtocol):
    """uvicorn's, which by itself would take a head of any size into memory, and wait for ever for
    one that does not come.
    """

    _in_head = False
    _head_bytes = 0
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._head_bytes += len(data)
        if self._in_head and self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(431, "Request Header Fields Too Large", "The request's head is too large")

    def on_message_begin(self) -> None:
        self._in_head = True
        self._head_bytes = 0
        self._expect_head()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop_timer()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "Bad Request", msg)

    def _expect_head(self) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.close)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, status: int, phrase: str, message: str) -> None:
        """What could not be parsed has no route; it is answered here, and the connection ends."""
        if self.transport.is_closing():
            return
        body = msgspec.json.encode(HttpError(status, message).body())
        head = (
            f"HTTP/1.1 {status} {phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
