"""The levels "ranks" and "perf" find collectives that are wrong, and kernels that crawl."""

import time

import pytest
import torch
from broken_platforms import with_attention, with_platform

from engine.testing.checks import Status, Subject, cases, pair, perf, run


@pytest.fixture(scope="module")
def cases_by_id():
    return {case.id: case for level in ("ranks", "perf") for case in cases(level)}


@pytest.fixture
def wrong(acme, model):
    """A subject with every fault that its two ranks can have; one pair of processes for all."""
    import wrong_ranks

    [spec] = wrong_ranks.engine_platforms()
    subject = Subject(spec, model)
    yield subject
    subject.close()


def test_wrong_collectives_are_found_each_for_itself(wrong, cases_by_id, monkeypatch):
    monkeypatch.setattr(pair, "PLAY_S", 2.0)
    right = run(cases_by_id["ranks/reduce-scatter/float32"], wrong)
    assert right.status is Status.PASSED, right.reason
    for case, reason in (
        ("ranks/all-reduce/bfloat16", "all-reduce, result 0: [-"),
        ("ranks/all-gather/float32", "all-gather, result 0: [-12, -25] of (2,)"),
        ("ranks/broadcast/float32", "broadcast, result"),
        ("ranks/barrier", "barrier, result"),
        ("ranks/send-and-receive/float32", "did not end send-and-receive within 2 s"),
    ):
        found = run(cases_by_id[case], wrong)
        assert found.status is Status.FAILED, case
        assert reason in found.reason


def test_a_platform_of_one_rank_is_not_asked(judge, good):
    found = judge("ranks/all-reduce/float32", good)
    assert found.status is Status.SKIPPED
    assert found.reason == "declares a world_size of 1"


@pytest.fixture
def little(monkeypatch):
    """Measure small things, for a short time: these tests look for factors of thousands."""
    monkeypatch.setattr(perf, "READ_BYTES", 4 * 2**20)
    monkeypatch.setattr(perf, "MEASURE_S", 0.02)
    monkeypatch.setattr(perf, "PREFILL", 16)
    monkeypatch.setattr(perf, "WIDTH", 256)


def test_attention_that_crawls_is_found(judge, good, little):
    def forward(self, q, k, v, cache, plan):
        time.sleep(0.2)
        return torch.zeros_like(q), cache

    found = judge("perf/decode-attention", with_attention(good, forward=forward))
    assert found.status is Status.FAILED
    assert "at least 10% is asked for" in found.reason


@pytest.mark.parametrize("case", ["perf/skinny-linear", "perf/prefill-linear"])
def test_a_linear_layer_that_crawls_is_found(judge, good, little, case):
    def ops(self, table):
        @table.register("linear", source="acme", priority=9)
        def linear(weight, bias):
            def crawl(x):
                time.sleep(0.2)
                return x @ weight.t()

            return crawl

    right = judge(case, good)
    assert right.status is Status.PASSED, right.reason
    assert right.values["share"] >= perf.FLOOR
    assert right.values["reached"] == pytest.approx(right.values["share"] * right.values["device"])
    found = judge(case, with_platform(good, ops=ops))
    assert found.status is Status.FAILED
    assert "at least 10% is asked for" in found.reason
