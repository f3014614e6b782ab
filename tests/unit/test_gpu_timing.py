"""How `benchmarks/gpu.py` measures kernels: their time, and what a decode step consists of."""

from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_overlapping_kernels_keep_the_device_busy_once() -> None:
    from accelerator.anatomy import Event, dissect

    step = [Event("gemm", 0, 4), Event("norm", 3, 6), Event("gemm", 8, 10)]
    events = step + [Event(one.name, one.start + 10, one.stop + 10) for one in step]
    found = dissect(events[::-1], 2)
    assert found.events == 3
    assert found.seconds == pytest.approx(10e-6)
    assert found.busy_share == pytest.approx(0.8)  # 6 and 2 of every 10
    assert found.kernels == (("gemm", 6.0, 2.0), ("norm", 3.0, 1.0))


def test_what_a_longer_run_has_more_of_are_decode_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerator import anatomy
    from accelerator.workloads import Workload

    def events(run, workload):  # type: ignore[no-untyped-def]
        prompt = [anatomy.Event("prompt", -50, 0)]
        steps = range(workload.outputs[0])
        return prompt + [anatomy.Event("step", 10 * i, 10 * i + 5) for i in steps]

    monkeypatch.setattr(anatomy, "_events", events)
    short, long = (Workload("any", ((1,),), (count,)) for count in (9, 41))
    found = {one.name: one for one in anatomy.anatomy("m", lambda workload: None, short, long)}
    assert found["m, kernels and copies a step"].value == 1
    assert found["m, device busy"].value == pytest.approx(100 * 160 / 315)
    assert found["m, kernel 1"].value.startswith("100.0%, 5.0 us a step, 1.0 times: step")


class HostEvent:
    """Of a clock that every call moves on by a millisecond."""

    clock = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = HostEvent.clock

    def synchronize(self) -> None: ...

    def elapsed_time(self, stop: "HostEvent") -> float:
        return stop.at - self.at


@pytest.mark.parametrize("capturable", [True, False])
def test_what_cannot_be_captured_is_launched_one_by_one_and_said(
    capturable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerator import timing

    def work() -> None:
        HostEvent.clock += 1.0

    def captured(calls, rounds, device):  # type: ignore[no-untyped-def]
        if not capturable:
            raise RuntimeError("operation not permitted when stream is capturing")
        return lambda: [call() for _ in range(rounds) for call in calls]

    monkeypatch.setattr(timing, "_captured", captured)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "Event", HostEvent)
    timed = timing.time_calls([work, work, work], "cuda:0")
    assert timed == timing.Timed(pytest.approx(1e-3), capturable)


def test_as_many_inputs_take_turns_as_no_cache_holds() -> None:
    from accelerator.timing import CACHE_BYTES, turns

    assert turns(CACHE_BYTES) == 1
    assert turns(CACHE_BYTES - 1) == 2
    assert turns(CACHE_BYTES / 4) == 4
    assert turns(1) == 16
    assert turns(1, most=3) == 3
