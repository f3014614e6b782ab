"""What the processor is measured to do, for predictions."""

import json
import time
from importlib.resources import files

import pytest

from engine.platform import DeviceProfile
from engine_cpu import engine_platforms, rates
from engine_cpu.memory import HostMemory


def test_the_platform_has_a_profile_however_often_it_is_asked() -> None:
    for _ in range(2):
        [spec] = engine_platforms()
        profile = spec.profile("cpu")
        assert isinstance(profile, DeviceProfile)
        assert profile.memory_bytes == HostMemory().snapshot().total


def test_measured_rates_are_those_of_a_processor() -> None:
    profile = rates.measure()
    assert 1e8 < profile.bandwidth < 1e12
    assert profile.flops.keys() == {"bfloat16", "float32", "float16"}
    assert all(1e8 < flops < 1e14 for flops in profile.flops.values())
    assert "measured just now" in profile.source


def test_the_quickest_of_many_runs_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "MEASURE_S", 0.05)
    sleeps = iter([0.0, 0.02, 0.005, *[0.02] * 100])
    found = rates._seconds(lambda: time.sleep(next(sleeps)))
    assert 0.005 <= found < 0.02


def test_errors_are_quoted_only_for_the_processor_they_were_found_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    validated = json.loads(files("engine_cpu").joinpath("validation.json").read_text())

    class Named:
        model = validated["processor"]

    class Other:
        model = "some other processor"

    assert rates._validation(Other()) is None  # type: ignore[arg-type]
    found = rates._validation(Named())  # type: ignore[arg-type]
    assert found is not None
    assert found.models == validated["models"]
    assert found.worst_error >= found.median_error == validated["median_error"]
