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
pytest, and writes a certificate.
"""

from collections.abc import Mapping
from typing import ClassVar

import pytest

from engine.platform import PlatformSpec
from engine.testing.checks import LEVELS, Case, Status, Subject, cases, run

_CASES = tuple(case for level in LEVELS for case in cases(level))
_SUBJECT: pytest.StashKey[Subject] = pytest.StashKey()


class PlatformTests:
    """Every check of every level, of the platform that the fixture `platform` gives."""

    #: Ids of checks that fail, with the reason.
    known_failures: ClassVar[Mapping[str, str]] = {}
    #: The platform computes no model: the token after n is n + 1. For null devices only.
    counts_up: ClassVar[bool] = False

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
            from engine.testing.checks import tiny_model

            spec = request.getfixturevalue("platform")
            folder = tiny_model.make(tmp_path_factory.mktemp("tiny-model"))
            subject = Subject(spec, folder, counts_up=self.counts_up)
            owner.addfinalizer(subject.close)
            owner.stash[_SUBJECT] = subject
        made: Subject = owner.stash[_SUBJECT]
        return made

    @pytest.mark.parametrize("case", _CASES, ids=[case.id for case in _CASES])
    def test_conforms(self, case: Case, subject: Subject) -> None:
        result = run(case, subject)
        if case.id in self.known_failures:
            assert result.status is Status.FAILED, f"no longer fails: {case.id}"
            pytest.xfail(self.known_failures[case.id])
        if result.status is Status.SKIPPED:
            pytest.skip(result.reason)
        assert result.status is Status.PASSED, result.reason
