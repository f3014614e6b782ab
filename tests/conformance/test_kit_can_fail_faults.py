"""The level "faults" finds platforms, and engines, that do not survive a fault."""

import pytest
from broken_platforms import with_attention, with_platform

from engine.runner import ModelRunner, model_runner
from engine.scheduler import Scheduler
from engine.testing.checks import Status, endings


def test_a_backend_that_stays_in_the_middle_of_a_step_is_found(assert_found, good):
    """It counts on every planned step to be computed."""
    layers = 2

    def plan(self, step):
        from engine_acme_npu.attention import AcmeAttention

        if vars(self).setdefault("waits_for", 0):
            raise RuntimeError(f"{self.waits_for} layers of the last step were not computed")
        self.waits_for = layers
        return AcmeAttention.plan(self, step)

    def forward(self, q, k, v, cache, plan):
        from engine_acme_npu.attention import AcmeAttention

        self.waits_for -= 1
        return AcmeAttention.forward(self, q, k, v, cache, plan)

    broken = with_attention(good, plan=plan, forward=forward)
    assert_found("faults/attention.forward/raise", broken, "layers of the last step")


def test_what_a_fault_leaves_in_the_cache_is_found_when_it_is_read(assert_found, good):
    def attend(self, q, cache, blocks, length):
        """Masks by adding, so that what others left in the block leaks when it is no number."""
        from engine_acme_npu.attention import AcmeAttention

        right = AcmeAttention._attend(self, q, cache, blocks, length)
        rest = cache.v_NKSD[blocks].transpose(0, 1).flatten(1, 2)[:, length:].float()
        return right + (rest * 0).sum()

    def allocate(self, num_blocks):
        """Of zeros, so that only the fault leaves anything there."""
        from engine_acme_npu.attention import AcmeAttention

        cache = AcmeAttention.allocate(self, num_blocks)
        cache.k_NKDS.zero_()
        cache.v_NKSD.zero_()
        return cache

    broken = with_attention(good, _attend=attend, allocate=allocate)
    assert_found("faults/attention.forward/nan", broken, "not finite")


def test_garbage_that_is_given_out_as_text_is_found(judge, good, monkeypatch):
    right = model_runner._collect

    def collect(*arguments):
        """Takes every number for a good one."""
        output = right(*arguments)
        slices = [
            type(one)((0,), one.logprobs, one.prompt_logprobs) if one.error else one
            for one in output.slices
        ]
        return type(output)(tuple(slices))

    case = "faults/graphs.run/nan"
    assert judge(case, good).status is Status.PASSED
    monkeypatch.setattr(model_runner, "_collect", collect)
    found = judge(case, good)
    assert found.status is Status.FAILED
    assert "nobody was told of the fault" in found.reason


def test_a_cache_that_keeps_what_was_computed_wrongly_is_found(judge, good, monkeypatch):
    from engine.kvcache import BlockPool

    case = "faults/attention.forward/nan-in-a-chunk"
    assert judge(case, good).status is Status.PASSED
    monkeypatch.setattr(BlockPool, "forget", lambda self, blocks: None)
    found = judge(case, good)
    assert found.status is Status.FAILED
    assert "not finite" in found.reason


def test_a_block_that_is_not_given_back_is_found(judge, good, monkeypatch):
    right = Scheduler.fail

    def fail(self, message):
        deltas = right(self, message)
        self.allocator.pool.take(1)
        return deltas

    monkeypatch.setattr(Scheduler, "fail", fail)
    found = judge("faults/graphs.run/raise", good)
    assert found.status is Status.FAILED
    assert "blocks are still held" in found.reason


def test_an_engine_that_is_made_in_spite_of_a_fault_is_found(judge, good, monkeypatch):
    from engine.testing.checks.injected import Fault

    monkeypatch.setattr(Fault, "_is_now", lambda self, point: False)
    found = judge("faults/graphs.warm_up/raise", good)
    assert found.status is Status.FAILED
    assert "an engine was made although graphs.warm_up failed" in found.reason


def test_a_hang_that_nobody_notices_is_found(judge, good, monkeypatch):
    """Without a limit for steps, the requests wait for ever."""
    monkeypatch.setattr(endings, "STEP_S", None)
    monkeypatch.setattr(endings, "PATIENCE_S", 1.0)
    found = judge("faults/process/hang", good)
    assert found.status is Status.FAILED
    assert "3 of 3 requests heard nothing for 1 s" in found.reason


def test_a_platform_that_no_other_process_can_make_is_found(judge, good):
    found = judge("faults/process/exit", with_platform(good))
    assert found.status is Status.FAILED
    assert "no function engine_platforms" in found.reason


@pytest.mark.parametrize("case", ["faults/runner/raise", "faults/runner/late"])
def test_a_runner_that_cannot_be_reset_is_found(judge, good, monkeypatch, case):
    def reset(self):
        raise RuntimeError("the runner cannot forget")

    monkeypatch.setattr(ModelRunner, "reset", reset)
    found = judge(case, good)
    assert found.status is Status.FAILED
    assert "cannot forget" in found.reason
