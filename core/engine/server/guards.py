"""What every request passes before its route: the key, and the count of answers."""

import hashlib
import hmac
import time
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine.server.metrics import Metrics
from engine.server.openai.errors import HttpError


class KeyGuard:
    """Lets a request under /v1 pass only with one of the keys: `Authorization: Bearer KEY`.

    Keys are compared by digest in constant time, so that answers' times tell nothing about them.
    Preflight requests (OPTIONS) carry no key and pass.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app = app
        self._digests = [_digest(key.encode()) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._is_open(scope) or self._knows(Headers(scope=scope).get("authorization", "")):
            await self._app(scope, receive, send)
            return
        error = HttpError(
            401,
            "This server asks for an API key: send it as Authorization: Bearer KEY",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )
        await error.response()(scope, receive, send)

    def _is_open(self, scope: Scope) -> bool:
        if scope["type"] != "http" or scope["method"] == "OPTIONS":
            return True
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        return not (path == "/v1" or path.startswith("/v1/"))

    def _knows(self, authorization: str) -> bool:
        scheme, _, key = authorization.partition(" ")
        digest = _digest(key.strip().encode("latin-1"))  # a header's bytes as they were sent
        matches = [hmac.compare_digest(digest, each) for each in self._digests]
        return scheme.lower() == "bearer" and any(matches)


class AnswerCount:
    """Counts answers by route, method and status, and their times."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500
        began = time.monotonic()

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            route = scope.get("route")
            handler = "none" if route is None else route.path
            self._metrics.count_answer(handler, scope["method"], status, time.monotonic() - began)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
