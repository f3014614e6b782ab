"""The CUDA platform keeps the platform contract, with the host in place of the device.

A part of the kit, in float32: Triton's interpreter takes seconds for an engine's scene. The ROCm
platform's tests have another part, of the code that both share. `tools/certify_without_device.py
cuda_on_cpu` runs all of it.
"""

from fnmatch import fnmatch

import pytest
from triton_on_cpu import spec

from engine.testing.checks import LEVELS, cases
from engine.testing.conformance import PlatformTests

EXAMINED = (
    "discovery/*",
    "memory/*",
    "ops/[a-r]*/float32",  # without "sample", which takes as long as all others
    "ops/silu*/float32",
    "ops/quantized-fp8/linear-float32",
    "runner/float32/preempted-and-overlapped",
    "scheduler/random-0-overlapped",
    "shapes/declares-them-or-has-none",
    "faults/graphs.run/nan-in-the-first-row",
)


class TestOnTheHost(PlatformTests):
    def pytest_generate_tests(self, metafunc):
        every = [case for level in LEVELS for case in cases(level)]
        chosen = [case for case in every if any(fnmatch(case.id, one) for one in EXAMINED)]
        metafunc.parametrize("case", chosen, ids=[case.id for case in chosen])

    @pytest.fixture
    def platform(self):
        return spec("cuda_on_cpu")
