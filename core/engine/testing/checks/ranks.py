"""Several ranks: collectives between two processes, and the tiny model divided between them."""

from collections.abc import Callable
from typing import Any

from engine.platform import Capabilities
from engine.testing.checks.case import Case, all_of, needs_dtype, needs_overlap, needs_ranks
from engine.testing.checks.collectives import PLAYS
from engine.testing.checks.numbers import DTYPES
from engine.testing.checks.pair import SIZE, without_indices
from engine.testing.checks.runner import TOLERANCES, Bench, batched, preempted
from engine.testing.checks.subject import Subject

#: They move no numbers of the model, so one dtype is enough.
ONE_DTYPE = ("barrier", "groups")


def is_exact(name: str, dtype: str | None) -> Callable[[Subject], None]:
    def check(subject: Subject) -> None:
        """Both ranks get exactly the right numbers."""
        subject.pair.play(name, dtype or subject.capabilities.dtypes[0])

    return check


class DividedBench(Bench):
    """Engines of two ranks."""

    def __init__(self, subject: Subject, dtype: str) -> None:
        super().__init__(subject, dtype)
        self._several = {"tensor_parallel": SIZE, "device": without_indices(subject.device)}

    def engine(self, **settings: Any) -> Any:
        return super().engine(**{**self._several, **settings})


def is_right_when_divided(
    scene: Callable[..., float], **settings: Any
) -> Callable[[Subject], float]:
    def check(subject: Subject) -> float:
        """A scene of the level "runner", with the model's heads and weights on two ranks."""
        dtype = "float32" if "float32" in subject.capabilities.dtypes else None
        dtype = dtype or subject.capabilities.dtypes[0]
        error = scene(DividedBench(subject, dtype), **settings)
        allowed = TOLERANCES[dtype]
        assert error <= allowed, f"error {error:.3g} is over the tolerance {allowed:.3g}"
        return error

    return check


def _no_skip(capabilities: Capabilities) -> str | None:
    return None


CASES = (
    *(
        Case(
            id=f"ranks/{name}/{dtype}",
            level="ranks",
            check=is_exact(name, dtype),
            skip=all_of(needs_ranks(SIZE), needs_dtype(dtype)),
            wide=True,
        )
        for dtype in DTYPES
        for name in PLAYS
        if name not in ONE_DTYPE
    ),
    *(
        Case(
            id=f"ranks/{name}",
            level="ranks",
            check=is_exact(name, None),
            skip=needs_ranks(SIZE),
            wide=True,
        )
        for name in ONE_DTYPE
    ),
    *(
        Case(
            id=f"ranks/tensor-parallel/{name}",
            level="ranks",
            check=is_right_when_divided(scene, **settings),
            tolerance=max(TOLERANCES.values()),
            skip=all_of(needs_ranks(SIZE), skip),
            wide=True,
            limit_s=300.0,
        )
        for name, scene, settings, skip in (
            ("batched", batched, {}, _no_skip),
            ("overlapped", batched, {"overlap": True}, needs_overlap),
            ("preempted", preempted, {}, _no_skip),
        )
    ),
)
