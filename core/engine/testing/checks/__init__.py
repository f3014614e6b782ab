"""The checks of the conformance kit, without pytest.

`cases(level)` lists those of a level; `run(case, subject)` judges one. The pytest classes
of `engine.testing.conformance` and `engine certify` are two ways to run the same list.
"""

import importlib

from engine.testing.checks.case import LEVELS, PERF, Case, Result, Status, run, strict
from engine.testing.checks.subject import Subject

__all__ = ["LEVELS", "PERF", "Case", "Result", "Status", "Subject", "cases", "run", "strict"]


def cases(level: str) -> tuple[Case, ...]:
    """The cases of one level. Imports torch for most of them, so not before the environment is set.

    Raises:
        KeyError: there is no such level.
    """
    if level not in (*LEVELS, PERF):
        raise KeyError(level)
    found: tuple[Case, ...] = importlib.import_module(f"{__name__}.{level}").CASES
    return found
