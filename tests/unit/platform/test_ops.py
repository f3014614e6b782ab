"""The table of operations: what it chooses, and what it tells about it."""

import pytest

from engine.errors import UnsupportedError
from engine.platform import OpTable
from engine.platform.ops import LOWER_PRIORITY, Answer, MissingOperationError

FACTS = {"dtype": "float32", "device": "npu:0"}


def slow() -> str:
    return "slow"


def fast() -> str:
    return "fast"


def fastest() -> str:
    return "fastest"


def table() -> OpTable:
    """Two that are picky, in either way of saying it, and one that serves everything."""
    made = OpTable()
    made.register("norm", source="reference")(slow)

    def too_wide(*, width: int = 0, **_: object) -> str | None:
        return f"width {width} is over 64" if width > 64 else None

    made.register("norm", source="vendor", priority=10, unless=too_wide)(fast)
    made.register("norm", source="kernels", priority=20, when=lambda *, width, **_: width < 8)(
        fastest
    )
    return made


def only_answer(made: OpTable) -> Answer:
    [answer] = made.answers
    return answer


@pytest.mark.parametrize(("width", "expected"), [(4, fastest), (64, fast), (65, slow)])
def test_the_best_that_serves_is_chosen(width: int, expected: object) -> None:
    assert table().choose("norm", width=width, **FACTS) is expected


def test_an_answer_names_what_was_chosen_and_why_each_other_was_not() -> None:
    made = table()
    made.choose("norm", width=65, **FACTS)
    answer = only_answer(made)
    assert (answer.name, answer.source) == ("norm", "reference")
    assert dict(answer.facts) == {"width": 65, **FACTS}
    assert answer.refused == (
        ("kernels", "its condition does not hold"),
        ("vendor", "width 65 is over 64"),
    )


def test_what_was_not_even_asked_has_a_lower_priority() -> None:
    made = table()
    made.choose("norm", width=4, **FACTS)
    assert only_answer(made).refused == (("vendor", LOWER_PRIORITY), ("reference", LOWER_PRIORITY))


def test_an_implementation_is_not_asked_once_a_better_one_serves() -> None:
    made = OpTable()
    made.register("norm", source="best", priority=1)(fast)

    def fails(**_: object) -> str:
        raise AssertionError("asked in vain")

    made.register("norm", source="worse", unless=fails)(slow)
    assert made.choose("norm", **FACTS) is fast


def test_equal_questions_are_one_answer_that_was_given_often() -> None:
    made = table()
    for width in (4, 65, 4, 4):
        made.choose("norm", width=width, **FACTS)
    assert list(made.answers.values()) == [3, 1]
    assert made.chosen == {("norm", "kernels"): 3, ("norm", "reference"): 1}


def test_where_nothing_serves_the_error_gives_every_reason() -> None:
    made = OpTable()
    made.register("norm", source="vendor", unless=lambda **_: "it is asleep")(fast)
    made.register("norm", source="kernels", when=lambda **_: False)(fastest)
    with pytest.raises(
        MissingOperationError, match="vendor: it is asleep; kernels: its condition does not hold"
    ):
        made.choose("norm", **FACTS)
    assert made.answers == {}


def test_an_unknown_operation_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(MissingOperationError, match=r"no implementation of 'norn'.*\['norm'\]"):
        table().choose("norn", **FACTS)


def test_users_see_a_missing_operation_as_what_the_platform_cannot_do() -> None:
    assert issubclass(MissingOperationError, UnsupportedError)
    assert issubclass(MissingOperationError, LookupError)  # what version 1.0 of the contract raised
