"""Every kernel is compiled for seven chips that are not here, and fits them. In processes of their
own: in this one, kernels are interpreted."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

from engine_triton.architecture import Architecture
from engine_triton.offline import standing_in

ROOT = Path(__file__).parents[3]

RESULT = {"target": "chip", "group": "some", "case": "one", "hot": True, "matrix": True}
USAGE = {
    "kernel": "_fast",
    "warps": 4,
    "registers": 40,
    "spilled_bytes": 0,
    "shared_memory": 2048,
    "matrix": ["mma"],
    "binary": 1000,
}


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("kernel_table", ROOT / "tools/kernel_table.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def results(tool):
    return tool.measure()


@pytest.mark.timeout(1800)
def test_no_kernel_spills_overflows_or_lacks_its_matrix_instruction(tool, results):
    assert [problem for one in results for problem in tool.problems(one)] == []


@pytest.mark.timeout(1800)
def test_every_case_was_tried_on_every_chip(tool, results):
    tried = {(one["target"], one["group"], one["case"]) for one in results}
    groups = {group for _, group, _ in tried}
    assert groups == {path.stem for path in tool.GROUPS}
    assert len(tried) == len(results) == len(tool.TARGETS) * len({key[1:] for key in tried})


@pytest.mark.timeout(1800)
def test_the_page_is_what_the_tool_writes(tool, results):
    assert tool.PAGE.read_text() == tool.page(results), "run python tools/kernel_table.py"


CASES = """
import os, time
import torch, triton, triton.language as tl
from triton_cases import Case

@triton.jit
def product(a_ptr, out_ptr, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    a = tl.load(a_ptr + at)
    tl.store(out_ptr + at, tl.dot(a, a))

@triton.jit
def copy(a_ptr, out_ptr, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(out_ptr + at, tl.load(a_ptr + at))

def multiply(device, architecture):
    a = torch.zeros(64, 64, dtype=torch.float16, device=device)
    product[(1,)](a, torch.zeros(64, 64, device=device), SIZE=64)

def copied(size, **options):
    def run(device, architecture):
        a = torch.zeros(size, device=device)
        copy[(1,)](a, torch.full_like(a, 7), SIZE=size, **options)
    return run

@triton.jit
def products(a_ptr, out_ptr, steps, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    total = tl.zeros([SIZE, SIZE], tl.float32)
    for step in range(steps):
        a = tl.load(a_ptr + 2 * step * SIZE * SIZE + at)
        total = tl.dot(a, tl.load(a_ptr + (2 * step + 1) * SIZE * SIZE + at), total)
    tl.store(out_ptr + at, total)

def too_large(device, architecture):
    a = torch.zeros(4, 128, 128, dtype=torch.float16, device=device)
    products[(1,)](a, torch.zeros(128, 128, device=device), 2, SIZE=128, num_warps=8, num_stages=5)

CASES = (
    Case("multiplies", multiply, hot=True, matrix=True),
    Case("multiplies nothing", copied(64), hot=True, matrix=True),
    Case("hangs", lambda device, architecture: time.sleep(300)),
    Case("spills", copied(8192, num_warps=1, maxnreg=32), hot=True),
    Case("kills", lambda device, architecture: os._exit(3)),
    Case("is too large", too_large),
    Case("is not served", multiply, unless=lambda architecture: f"not on {architecture.name}"),
    Case("launches nothing", lambda device, architecture: None),
)
"""


@pytest.fixture(scope="module")
def odd(tool, tmp_path_factory):
    path = tmp_path_factory.mktemp("cases") / "odd.py"
    path.write_text(CASES)
    return {one["case"]: one for one in tool.measure(["sm_80"], [path], limit_s=30.0)}


@pytest.mark.timeout(900)
def test_a_kernel_is_compiled_and_its_matrix_instruction_is_found(tool, odd):
    assert tool.problems(odd["multiplies"]) == []
    [usage] = odd["multiplies"]["usages"]
    assert usage["kernel"] == "product"
    assert usage["matrix"] == ["mma"]
    assert 16 < usage["registers"] < 256
    assert usage["shared_memory"] >= 64 * 64 * 2
    assert usage["binary"] > 1000


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("case", "wrong"),
    [
        ("multiplies nothing", "no kernel uses a matrix instruction"),
        ("hangs", "it was not compiled in 30 s"),
        ("spills", r"copy spills \d+ bytes"),
        ("kills", "the compiler ended the process with status 3"),
        ("is too large", "OutOfResources: out of resource: shared memory"),
        ("launches nothing", "nothing was launched"),
    ],
)
def test_what_is_wrong_with_a_kernel_is_said_and_the_rest_goes_on(tool, odd, case, wrong):
    [problem] = tool.problems(odd[case])
    assert problem.startswith(f"odd, {case!r} on sm_80: ")
    assert re.search(wrong, problem)


@pytest.mark.timeout(900)
def test_a_chip_that_is_not_served_says_why(tool, odd):
    assert tool.problems(odd["is not served"]) == []
    assert "* is not served on sm_80: not on sm_80" in tool.page(list(odd.values()))


def test_the_page_shows_the_largest_variant_of_each_kernel(tool):
    larger = USAGE | {"registers": 99, "shared_memory": 100, "matrix": []}
    spilled = USAGE | {"kernel": "_slow", "spilled_bytes": 24, "shared_memory": 0, "matrix": []}
    page = tool.page(
        [
            RESULT | {"usages": [USAGE, larger, spilled]},
            RESULT | {"target": "other", "error": "a compiler's"},
        ]
    )
    assert "| one | fast | 99 regs, 100 B, mma | fails |" in page
    assert "| one | slow | 40 regs, *spilled* 24 B | fails |" in page


def test_kernels_are_not_compiled_where_they_are_interpreted():
    with (
        pytest.raises(RuntimeError, match="switch it off"),
        standing_in(Architecture.named("sm_80")),
    ):
        pass
