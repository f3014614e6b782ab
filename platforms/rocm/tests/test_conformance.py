"""The ROCm platform keeps the platform contract, with the host in place of the device.

A part of the kit, in narrow dtypes: Triton's interpreter takes seconds for an engine's scene. The
CUDA platform's tests have another part, of the code that both share. All of it is run by
`tools/certify_without_device.py rocm_on_cpu`.
"""

from fnmatch import fnmatch

import pytest
from triton_on_cpu import spec

from engine.testing.checks import LEVELS, cases
from engine.testing.conformance import PlatformTests

EXAMINED = (
    "discovery/*",
    "memory/*",
    "ops/*norm/*float16",
    "ops/mixture_of_experts/bfloat16",
    "ops/quantized-int8/linear-bfloat16",
    "ops/quantized-int4/linear-float16",
    "runner/bfloat16/chunked",
    "runner/float16/prefix-hit",
    "faults/attention.forward/nan-in-a-chunk",
)


class TestOnTheHost(PlatformTests):
    def pytest_generate_tests(self, metafunc):
        every = [case for level in LEVELS for case in cases(level)]
        chosen = [case for case in every if any(fnmatch(case.id, one) for one in EXAMINED)]
        metafunc.parametrize("case", chosen, ids=[case.id for case in chosen])

    @pytest.fixture
    def platform(self):
        return spec("rocm_on_cpu")
