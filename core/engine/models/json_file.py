"""JSON files of a model's folder."""

import json
from pathlib import Path
from typing import Any

from engine.errors import ModelError


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ModelError: the file cannot be read, or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is not readable JSON ({error}); fetch it again") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} must hold a JSON object, but holds a {type(value).__name__}")
    return value
