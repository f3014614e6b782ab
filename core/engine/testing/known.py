"""Known failures of a platform: a TOML file of reasons by case id."""

import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path

from engine.errors import ConfigError
from engine.testing.checks import LEVELS, PERF, cases


def read_known(path: str) -> dict[str, str]:
    """The file's reasons by case id: lines like `"attention/float16/soft-cap" = "why"`.

    Raises:
        ConfigError: the file cannot be read, or has something else in it.
    """
    try:
        found = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"known failures cannot be read from {path}: {error}") from error
    for name, reason in found.items():
        if not isinstance(reason, str) or not reason.strip():
            raise ConfigError(
                f"known failures in {path}: {name!r} needs a reason, as text; lines look like"
                ' "attention/float16/soft-cap" = "the device has no tanh"'
            )
    return found


def check_known(known: Mapping[str, str]) -> None:
    """Imports torch where anything is listed.

    Raises:
        ConfigError: a failure is listed for a case that the kit does not have.
    """
    ids = [case.id for level in (*LEVELS, PERF) for case in cases(level)] if known else []
    for name in known:
        if name not in ids:
            near = get_close_matches(name, ids, n=1)
            guess = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"a known failure is listed for {name!r}, which is no case{guess}")
