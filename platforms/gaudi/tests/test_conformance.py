"""The platform's own code keeps the contract, with device and backends replaced by the CPU's.

`tools/certify_without_device.py gaudi_on_cpu` runs every case. Here the dear ones are left out, for
each program takes a second to trace: a second dtype, the level "scheduler", whose caches are each
of another size, and the level "ranks" and engines in a process of their own, which share none.
"""

from dataclasses import replace

import gaudi_on_cpu
import pytest

from engine.testing.checks import cases
from engine.testing.conformance import PlatformTests

[ON_CPU] = gaudi_on_cpu.engine_platforms()


class TestGaudiOnCpu(PlatformTests):
    levels = ("discovery", "memory", "ops", "attention")

    @pytest.fixture
    def platform(self):
        return ON_CPU


class TestEnginesOfOneDtype(PlatformTests):
    levels = ("runner", "shapes", "faults")

    def pytest_generate_tests(self, metafunc):
        if "case" in metafunc.fixturenames:
            found = [one for level in self.levels for one in cases(level) if not is_apart(one)]
            metafunc.parametrize("case", found, ids=[one.id for one in found])

    @pytest.fixture
    def platform(self):
        return replace(ON_CPU, create=of_one_dtype)


def is_apart(case):
    return case.id.startswith("faults/process/")


def of_one_dtype(config, rank):
    platform = ON_CPU.create(config, rank)
    one = ("float32",)
    platform.capabilities = replace(platform.capabilities, dtypes=one, kv_dtypes=one)
    return platform
