"""One check of a platform, and what came of it. Neither pytest nor torch."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from engine.errors import UnsupportedError
from engine.platform import Capabilities
from engine.testing.checks.subject import Subject

#: The order in which a platform is looked at: each level trusts the ones before it.
LEVELS = ("discovery", "memory", "ops", "attention", "runner", "scheduler")


class Status(Enum):
    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """`check` returns the error it measured, or None where there is nothing to measure.

    A check fails by raising, or by an error over `tolerance`. What a check compares, and how its
    error is defined, is in its docstring.
    """

    id: str  # "attention/float32/window"
    level: str
    check: Callable[[Subject], float | None]
    tolerance: float | None = None
    skip: Callable[[Capabilities], str | None] = lambda capabilities: None
    optional: bool = False  # an UnsupportedError is an answer, not a failure
    wide: bool = False  # needs the platform's parts, so the wide seam


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    id: str
    level: str
    status: Status
    seconds: float
    tolerance: float | None = None
    error: float | None = None  # as measured
    reason: str = ""  # why it failed or was skipped


def run(case: Case, subject: Subject) -> Result:
    """Run one case. Never raises, except for what stops the process anyway."""
    began = time.perf_counter()
    status, error, reason = _judge(case, subject)
    return Result(
        id=case.id,
        level=case.level,
        status=status,
        seconds=time.perf_counter() - began,
        tolerance=case.tolerance,
        error=error,
        reason=reason,
    )


def _judge(case: Case, subject: Subject) -> tuple[Status, float | None, str]:
    try:
        if case.wide and subject.narrow:
            return Status.SKIPPED, None, "the platform has a runner of its own (narrow seam)"
        if why := case.skip(subject.capabilities):
            return Status.SKIPPED, None, why
        error = case.check(subject)
    except UnsupportedError as refusal:
        status = Status.SKIPPED if case.optional else Status.FAILED
        return status, None, f"unsupported: {refusal}"
    except Exception as problem:
        return Status.FAILED, None, f"{type(problem).__name__}: {problem}"
    if error is None or case.tolerance is None:
        return Status.PASSED, error, ""
    if error <= case.tolerance:  # false for NaN
        return Status.PASSED, error, ""
    return Status.FAILED, error, f"error {error:.3g} is over the tolerance {case.tolerance:.3g}"


# Why a case does not apply, told from the capabilities alone.


def needs_dtype(dtype: str) -> Callable[[Capabilities], str | None]:
    def skip(capabilities: Capabilities) -> str | None:
        return None if dtype in capabilities.dtypes else f"declares no dtype {dtype}"

    return skip


def needs_kv_dtype(dtype: str) -> Callable[[Capabilities], str | None]:
    def skip(capabilities: Capabilities) -> str | None:
        return None if dtype in capabilities.kv_dtypes else f"declares no KV dtype {dtype}"

    return skip


def needs_block_size(size: int) -> Callable[[Capabilities], str | None]:
    def skip(capabilities: Capabilities) -> str | None:
        declared = capabilities.block_sizes
        return None if size in declared else f"declares no block size {size}"

    return skip


def needs_mixed_batches(capabilities: Capabilities) -> str | None:
    return None if capabilities.mixed_batches else "declares no mixed_batches"


def needs_chunked_prefill(capabilities: Capabilities) -> str | None:
    return None if capabilities.chunked_prefill else "declares no chunked_prefill"


def needs_prefix_reuse(capabilities: Capabilities) -> str | None:
    return None if capabilities.prefix_reuse else "declares no prefix_reuse"


def needs_overlap(capabilities: Capabilities) -> str | None:
    return None if capabilities.overlap else "declares no overlap"


def all_of(
    *skips: Callable[[Capabilities], str | None],
) -> Callable[[Capabilities], str | None]:
    """The first reason that applies."""

    def skip(capabilities: Capabilities) -> str | None:
        return next((why for one in skips if (why := one(capabilities))), None)

    return skip
