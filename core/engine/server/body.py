"""A request's body, bounded in size and time."""

import asyncio
from typing import Final

from starlette.requests import ClientDisconnect, Request

from engine.server.openai.errors import HttpError
from engine.server.sse import ClientLeftError

_JSON: Final = frozenset(("", "application/json", "text/json"))


async def read_body(request: Request, max_bytes: int, timeout_s: float) -> bytes:
    """The whole body of a request that carries JSON.

    Raises:
        HttpError: 413 too large, 415 not JSON or compressed, 408 too slow.
        ClientLeftError: the client left before it had sent everything.
    """
    _check_type(request)
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise _too_large(max_bytes)
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(timeout_s):
            async for part in request.stream():
                size += len(part)
                if size > max_bytes:
                    raise _too_large(max_bytes)
                parts.append(part)
    except TimeoutError:
        raise HttpError(
            408, f"The body did not arrive within {timeout_s:g} seconds", headers=_CLOSE
        ) from None
    except ClientDisconnect:
        raise ClientLeftError from None
    return b"".join(parts)


#: Of a body that is refused nothing more is received.
_CLOSE: Final = {"Connection": "close"}


def _too_large(max_bytes: int) -> HttpError:
    return HttpError(
        413, f"The body is larger than this server takes: {max_bytes} bytes", headers=_CLOSE
    )


def _check_type(request: Request) -> None:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in _JSON and not (kind.startswith("application/") and kind.endswith("+json")):
        raise HttpError(415, "Content-Type must be application/json", headers=_CLOSE)
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise HttpError(415, "A compressed body is not taken; send it as it is", headers=_CLOSE)
