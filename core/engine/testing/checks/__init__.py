"""The checks of the conformance kit, without pytest.

`cases(level)` lists those of a level; `run(case, subject)` judges one. The pytest classes
of `engine.testing.conformance` and `engine certify` are two ways to run the same list.
"""

from engine.testing.checks.case import LEVELS, Case, Result, Status, run
from engine.testing.checks.subject import Subject

__all__ = ["LEVELS", "Case", "Result", "Status", "Subject", "cases", "run"]


def cases(level: str) -> tuple[Case, ...]:
    """The cases of one level. Imports torch for most of them, so not before the environment is set.

    Raises:
        KeyError: there is no such level.
    """
    from engine.testing.checks import attention, discovery, memory, ops, runner, scheduler

    return {
        "discovery": discovery.CASES,
        "memory": memory.CASES,
        "ops": ops.CASES,
        "attention": attention.CASES,
        "runner": runner.CASES,
        "scheduler": scheduler.CASES,
    }[level]
