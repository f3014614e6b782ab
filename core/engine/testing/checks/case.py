"""One check of a platform, and what came of it. Neither pytest nor torch."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TypeAlias

from engine.errors import UnsupportedError
from engine.platform import Capabilities
from engine.testing.checks.subject import Subject

#: The order in which a platform is looked at: each level trusts the ones before it.
LEVELS = (
    "discovery",
    "memory",
    "ops",
    "attention",
    "runner",
    "scheduler",
    "shapes",
    "faults",
    "ranks",
)
#: Only looked at when asked for: it needs the device to itself.
PERF = "perf"

#: What a check found: an error, measured values by name, or nothing but that all is well.
Found: TypeAlias = float | Mapping[str, float] | None


class Status(Enum):
    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"
    KNOWN = "known"  # failed, as is listed with a reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """`check` returns the error it measured, or values, or None: there is nothing to measure.

    A check fails by raising, or by an error over `tolerance`. What a check compares, and how its
    error is defined, is in its docstring.
    """

    id: str  # "attention/float32/window"
    level: str
    check: Callable[[Subject], Found]
    tolerance: float | None = None
    skip: Callable[[Capabilities], str | None] = lambda capabilities: None
    optional: bool = False  # an UnsupportedError is an answer, not a failure
    wide: bool = False  # needs the platform's parts, so the wide seam
    limit_s: float = 120.0  # a case that takes longer hangs


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    id: str
    level: str
    status: Status
    seconds: float
    tolerance: float | None = None
    error: float | None = None  # as measured
    reason: str = ""  # why it failed or was skipped
    values: Mapping[str, float] = field(default_factory=dict)  # as measured, where it has names


def strict(result: Result, known: Mapping[str, str]) -> Result:
    """The result in the light of the known failures, which are reasons by case id.

    A failure that is listed is known. What is listed and does not fail is a failure: of the list.
    """
    if result.id not in known:
        return result
    if result.status is Status.FAILED:
        reason = f"{known[result.id]} ({result.reason})"
        return replace(result, status=Status.KNOWN, reason=reason)
    reason = f"listed as a known failure, but {result.status.value}: take it off the list"
    return replace(result, status=Status.FAILED, reason=reason)


def run(case: Case, subject: Subject) -> Result:
    """Run one case. Never raises, except for what stops the process anyway."""
    began = time.perf_counter()
    status, found, reason = _judge(case, subject)
    return Result(
        id=case.id,
        level=case.level,
        status=status,
        seconds=time.perf_counter() - began,
        tolerance=case.tolerance,
        error=found if isinstance(found, int | float) else None,
        reason=reason,
        values=dict(found) if isinstance(found, Mapping) else {},
    )


def _judge(case: Case, subject: Subject) -> tuple[Status, Found, str]:
    try:
        if case.wide and subject.narrow:
            return Status.SKIPPED, None, "the platform has a runner of its own (narrow seam)"
        if why := case.skip(subject.capabilities):
            return Status.SKIPPED, None, why
        found = case.check(subject)
    except UnsupportedError as refusal:
        status = Status.SKIPPED if case.optional else Status.FAILED
        return status, None, f"unsupported: {refusal}"
    except Exception as problem:
        return Status.FAILED, None, f"{type(problem).__name__}: {problem}"
    if not isinstance(found, int | float) or case.tolerance is None:
        return Status.PASSED, found, ""
    if found <= case.tolerance:  # false for NaN
        return Status.PASSED, found, ""
    return Status.FAILED, found, f"error {found:.3g} is over the tolerance {case.tolerance:.3g}"


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


def needs_static_shapes(capabilities: Capabilities) -> str | None:
    return None if capabilities.static_shapes else "declares no static_shapes"


def needs_ranks(count: int) -> Callable[[Capabilities], str | None]:
    def skip(capabilities: Capabilities) -> str | None:
        most = capabilities.world_size
        return None if most >= count else f"declares a world_size of {most}"

    return skip


def all_of(
    *skips: Callable[[Capabilities], str | None],
) -> Callable[[Capabilities], str | None]:
    """The first reason that applies."""

    def skip(capabilities: Capabilities) -> str | None:
        return next((why for one in skips if (why := one(capabilities))), None)

    return skip
