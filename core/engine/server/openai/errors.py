"""Failures as the OpenAI API tells them: `{"error": {message, type, param, code}}` and a status.

Every answer that is not a success comes from here, unknown routes and broken JSON included, so a
client needs to know one shape only.
"""

from collections.abc import Mapping
from typing import Final

import msgspec
from starlette.responses import Response

from engine.errors import CapacityError, EngineDeadError, EngineError, RequestError

#: A client's own input may be part of a message: cut, so that no answer amplifies a request.
MAX_MESSAGE: Final = 500

RETRY_AFTER_S: Final = 5

#: The `type` of an error by status, as vLLM and the SDK's exceptions name it.
_TYPES: Final = {
    400: "BadRequestError",
    401: "AuthenticationError",
    404: "NotFoundError",
    405: "MethodNotAllowedError",
    408: "RequestTimeoutError",
    413: "RequestTooLargeError",
    415: "UnsupportedMediaTypeError",
    429: "RateLimitError",
    503: "ServiceUnavailableError",
}


class ErrorBody(msgspec.Struct):
    message: str
    type: str
    param: str | None
    code: int | str | None


class ErrorResponse(msgspec.Struct):
    error: ErrorBody


class HttpError(Exception):
    """A failure with a status. `parameter` names the field at fault, where there is one."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        parameter: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.parameter = parameter
        self.code = code
        self.headers = dict(headers or {})

    def body(self) -> ErrorResponse:
        message = str(self)
        if len(message) > MAX_MESSAGE:
            message = message[:MAX_MESSAGE] + "…"
        kind = _TYPES.get(self.status, "InternalServerError")
        code = self.code if self.code is not None else self.status
        return ErrorResponse(ErrorBody(message, kind, self.parameter, code))

    def response(self) -> Response:
        body = msgspec.json.encode(self.body())
        return Response(body, self.status, self.headers, media_type="application/json")


def unavailable(message: str) -> HttpError:
    """503: come back later, or to another server."""
    return HttpError(503, message, headers={"Retry-After": str(RETRY_AFTER_S)})


def overloaded(message: str) -> HttpError:
    """429: too much is waiting already."""
    return HttpError(429, message, headers={"Retry-After": str(RETRY_AFTER_S)})


def unsupported(parameter: str, message: str) -> HttpError:
    """400: asked for, and not part of this version. Never ignored in silence."""
    return HttpError(400, message, parameter=parameter, code="unsupported_parameter")


def from_engine(error: EngineError) -> HttpError:
    """What a client is told about an error of the engine."""
    if isinstance(error, CapacityError):
        return HttpError(400, str(error), parameter=error.parameter)
    if isinstance(error, RequestError):
        code = "context_length_exceeded" if "maximum context length" in str(error) else None
        return HttpError(400, str(error), parameter=error.parameter, code=code)
    if isinstance(error, EngineDeadError):
        return HttpError(500, "The engine process ended while it worked on this request")
    return HttpError(500, f"The engine failed on this request: {error}")
