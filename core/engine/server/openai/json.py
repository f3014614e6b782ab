"""JSON in and out. Decoding checks types as strictly as the API does, and says where it failed."""

import re
from typing import Any, TypeVar

import msgspec
from starlette.responses import Response

from engine.errors import RequestError

T = TypeVar("T")

_PLACE = re.compile(r"^(?P<what>.*?) - at (?P<key>`key` in )?`\$(?P<place>[^`]*)`$", re.DOTALL)


def decode(body: bytes, type: type[T]) -> T:
    """A request body as `type`.

    Raises:
        RequestError: it is not JSON, or not of that shape; `parameter` names the field.
    """
    if not body.strip():
        raise RequestError("The body is empty; it must be a JSON object")
    try:
        return msgspec.json.decode(body, type=type)
    except msgspec.ValidationError as error:
        raise _explained(error, "") from None
    except UnicodeDecodeError:
        raise RequestError("The body is not valid UTF-8") from None
    except msgspec.DecodeError as error:
        raise RequestError(f"The body is not valid JSON: {error}") from None
    except RecursionError:
        raise RequestError("The body is nested too deeply") from None


def convert(value: Any, type: Any, place: str) -> Any:
    """A field that `decode` left as it was, as `type`.

    Raises:
        RequestError: it has another shape; `parameter` begins with `place`.
    """
    try:
        return msgspec.convert(value, type=type)
    except msgspec.ValidationError as error:
        raise _explained(error, place) from None
    except RecursionError:
        raise RequestError(f"{place} is nested too deeply", place) from None


def json_response(value: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")


def _explained(error: msgspec.ValidationError, place: str) -> RequestError:
    text = str(error)
    if found := _PLACE.match(text):
        key = found["place"].lstrip(".") if not place else found["place"]
        parameter = f"{place}{key}"
        what = f"key: {found['what']}" if found["key"] else found["what"]
    else:
        parameter, what = place, text
    return RequestError(f"{parameter}: {what}" if parameter else what, parameter or None)
