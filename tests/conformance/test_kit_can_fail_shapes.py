"""The level "shapes" finds each thing that a platform with static shapes may get wrong."""

from dataclasses import replace

import pytest
from broken_platforms import with_platform

from engine.platform import EagerRunner, ShapeBuckets
from engine.testing.checks import Status, cases


@pytest.fixture
def parts(acme):
    """Of the static platform; what they are made from is only importable now."""
    import static_acme

    return static_acme


@pytest.fixture
def found(assert_found, parts, good):
    """A case passes for the static platform and fails for the broken one."""

    def found(case, broken, reason):
        assert_found(case, broken, reason, good=parts.static(good))

    return found


def test_a_platform_with_static_shapes_passes_the_whole_level(judge, parts, good):
    spec = parts.static(good)
    results = [judge(case.id, spec) for case in cases("shapes")]
    failed = [f"{one.id}: {one.reason}" for one in results if one.status is Status.FAILED]
    assert not failed
    reasons = {one.reason for one in results if one.status is Status.SKIPPED}
    assert reasons == {"declares no overlap"}


def test_shapes_that_are_declared_but_not_named_are_found(found, parts, good):
    broken = parts.static(good, buckets=lambda self, limits: None)
    found("shapes/declares-them-or-has-none", broken, "static_shapes is True")


def test_shapes_that_are_named_but_not_declared_are_found(assert_found, good):
    broken = with_platform(good, buckets=lambda self, limits: ShapeBuckets.doubling(limits))
    assert_found("shapes/declares-them-or-has-none", broken, "static_shapes is False")


def test_buckets_for_half_the_context_are_found(found, parts, good):
    def buckets(self, limits):
        return ShapeBuckets.doubling(replace(limits, max_model_len=limits.max_model_len // 2))

    broken = parts.static(good, buckets=buckets)
    found("shapes/holds-256-16-1024", broken, "no shape holds a step of")


def test_programs_that_are_not_warmed_up_are_found(found, parts, good):
    class Lazy(parts.Programs):
        def warm_up(self, forward, make_inputs):
            shape = self.buckets.shapes()[0]
            self.run(forward, make_inputs(shape.requests, shape.tokens, shape))

    case = "shapes/compiles-nothing/batched"
    found(case, parts.static(good, programs=Lazy), "a shape that was not warmed up")


def test_programs_that_are_made_anew_are_found(found, parts, good):
    class Forgetful(parts.Programs):
        """Thinks that a step of other lengths needs a program of its own."""

        def run(self, forward, inputs):
            self.num_compiled += 1
            return forward(inputs)

    case = "shapes/compiles-nothing/alone"
    found(case, parts.static(good, programs=Forgetful), "were compiled after warm-up")


def test_a_compiler_without_static_shapes_is_found_when_it_works_in_a_step(assert_found, good):
    class Tracer(EagerRunner):
        """Makes a program of every number of tokens that it meets, when it meets it."""

        def __init__(self):
            self.num_compiled = 0
            self._met = set()

        def run(self, forward, inputs):
            if len(inputs.input_ids) not in self._met:
                self._met.add(len(inputs.input_ids))
                self.num_compiled += 1
            return forward(inputs)

    broken = with_platform(good, graphs=lambda self: Tracer())
    assert_found("shapes/compiles-nothing/batched", broken, "programs were compiled after warm-up")


def test_padding_that_is_read_is_found(found, parts, good):
    class Masking(parts.StaticAttention):
        """Reads whole block tables, and hides what is beyond the length with a weight of 0."""

        def plan(self, step):
            right = super().plan(step)
            table = step.block_table.long()
            return replace(
                right, rows=tuple((*row[:3], table[i]) for i, row in enumerate(right.rows))
            )

        def _attend(self, q, cache, blocks, length):
            values = cache.v_NKSD[blocks].transpose(0, 1).flatten(1, 2).float()
            return super()._attend(q, cache, blocks, length) + (values[:, length:] * 0).sum()

    broken = parts.static(good, attention=Masking)
    found("shapes/reads-no-padding/batched", broken, "not finite")


def test_a_result_of_padding_that_is_used_is_found(judge, parts, good, monkeypatch):
    """As if the runner took a step's last row for that of its last request."""
    from engine.runner.static import StaticSteps

    right = StaticSteps.logits

    def logits(self, graphs, project, hidden_TC, shape):
        return right(self, graphs, project, hidden_TC.flip(0), shape)

    monkeypatch.setattr(StaticSteps, "logits", logits)
    found = judge("shapes/reads-no-padding/alone", parts.static(good))
    assert found.status is Status.FAILED
    assert "not finite" in found.reason


def test_a_program_that_is_made_and_not_counted_is_found(found, parts, good):
    class Silent(parts.Programs):
        def run(self, forward, inputs):
            return forward(inputs)

    case = "shapes/refuses-what-it-has-no-program-for"
    found(case, parts.static(good, programs=Silent, missing="compile"), "did not rise")
