"""How answers are named."""

import re
import uuid
from typing import Final

from engine import __version__
from engine.errors import RequestError

SYSTEM_FINGERPRINT: Final = f"engine-{__version__}"

_NAME: Final = re.compile(r"[\x21-\x7e]{1,128}")


def response_id(kind: str, asked: str | None) -> str:
    """ "chatcmpl-…": with the client's own id where it sent one.

    Raises:
        RequestError: that id is no plain name.
    """
    if asked is None:
        return f"{kind}-{uuid.uuid4().hex}"
    if not _NAME.fullmatch(asked):
        raise RequestError("request_id must be 1 to 128 printable characters", "request_id")
    return f"{kind}-{asked}"
