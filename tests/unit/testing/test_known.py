"""Known failures: a list that is read strictly."""

import pytest

from engine.errors import ConfigError
from engine.testing.checks.case import Result, Status, strict
from engine.testing.known import read_known


def result(status):
    return Result(id="ops/a", level="ops", status=status, seconds=0.0, reason="too hot")


def test_a_list_is_reasons_by_case(tmp_path):
    path = tmp_path / "known.toml"
    path.write_text('# of this chip\n"ops/a" = "the multiplier is broken"\n')
    assert read_known(str(path)) == {"ops/a": "the multiplier is broken"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('"ops/a" = ""', "'ops/a' needs a reason"),
        ('"ops/a" = 3', "'ops/a' needs a reason"),
        ('[ops]\na = "b"', "'ops' needs a reason"),
        ("ops/a", "cannot be read"),
    ],
)
def test_a_list_without_reasons_is_refused(tmp_path, text, reason):
    path = tmp_path / "known.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=reason):
        read_known(str(path))


def test_a_list_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_known(str(tmp_path / "none.toml"))


def test_a_listed_failure_is_known_and_tells_both_reasons():
    found = strict(result(Status.FAILED), {"ops/a": "the multiplier"})
    assert found.status is Status.KNOWN
    assert found.reason == "the multiplier (too hot)"


@pytest.mark.parametrize("status", [Status.PASSED, Status.SKIPPED])
def test_what_is_listed_and_does_not_fail_is_a_failure_of_the_list(status):
    found = strict(result(status), {"ops/a": "the multiplier"})
    assert found.status is Status.FAILED
    assert status.value in found.reason


def test_what_is_not_listed_stays_as_it_is():
    one = result(Status.FAILED)
    assert strict(one, {"ops/b": "why"}) is one
