"""The conformance kit for pytest. Inherit one class and override one fixture:

    from engine.testing.conformance import PlatformTests

    class TestAcme(PlatformTests):
        @pytest.fixture
        def platform(self):
            [spec] = engine_acme_npu.engine_platforms()
            return spec

Each check is a test of its own, skipped only where the platform's capabilities say that it does
not apply. What is known to fail is listed in `known_failures`, by id with a reason, and is strict:
once it passes, the list is wrong. `engine certify --device NAME` runs the same checks without
pytest, and writes a certificate. `levels` narrows the checks, for a suite that must be quick.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import pytest

from engine.platform import PlatformSpec
from engine.testing.checks import LEVELS, Case, Status, Subject, cases, run, strict
from engine.testing.known import check_known

_SUBJECT: pytest.StashKey[Subject] = pytest.StashKey()


class PlatformTests:
    """Every check of the levels, of the platform that the fixture `platform` gives."""

    #: What is looked at, in this order.
    levels: ClassVar[Sequence[str]] = LEVELS

    #: Ids of checks that fail, with the reason.
    known_failures: ClassVar[Mapping[str, str]] = {}
    #: The platform computes no model: the token after n is n + 1. For null devices only.
    counts_up: ClassVar[bool] = False

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """A test for each case of the class's levels."""
        if "case" in metafunc.fixturenames:
            check_known(self.known_failures)
            found = [case for level in self.levels for case in cases(level)]
            metafunc.parametrize("case", found, ids=[case.id for case in found])

    @pytest.fixture
    def platform(self) -> PlatformSpec:
        """The platform's spec, as its `engine_platforms` hook returns it. Override this."""
        raise NotImplementedError("override the fixture `platform`")

    @pytest.fixture
    def subject(
        self, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
    ) -> Subject:
        """One for the whole class, kept with its node and closed with it."""
        owner = request.node.getparent(pytest.Class)
        if _SUBJECT not in owner.stash:
            spec = request.getfixturevalue("platform")
            subject = Subject(spec, tmp_path_factory.mktemp("tiny-model"), counts_up=self.counts_up)
            owner.addfinalizer(subject.close)
            owner.stash[_SUBJECT] = subject
        made: Subject = owner.stash[_SUBJECT]
        return made

    def test_conforms(self, case: Case, subject: Subject) -> None:
        result = strict(run(case, subject), self.known_failures)
        match result.status:
            case Status.KNOWN:
                pytest.xfail(result.reason)
            case Status.SKIPPED:
                pytest.skip(result.reason)
            case _:
                assert result.status is Status.PASSED, result.reason
