"""A real trained model on simulated chips: the CPU platform's tokens, which were published."""

import json
import os
from pathlib import Path

import pytest

import engine_tpu

# As the engine sets it; `test_alone.py` sets some of it for all modules.
os.environ.update(engine_tpu.simulated_environment(0))

from engine import LLM, SamplingParams

SHARED = Path(os.environ.get("ENGINE_SHARED", Path(__file__).parents[5] / "shared"))
#: Few programs: a decode step, and one of sixteen tokens; two blocks hold a request.
SMALL = {
    "dtype": "float32",
    "max_requests": 1,
    "max_batch_tokens": 16,
    "max_model_len": 128,
    "block_size": 64,
    "num_blocks": 4,
}
STEPS = 2
LENGTH = 72  # tokens of output, into the second block


@pytest.fixture(scope="module")
def stories() -> Path:
    folder = SHARED / "models" / "stories260K"
    if not folder.is_dir():
        pytest.skip("no shared material: set ENGINE_SHARED to its folder")
    return folder


@pytest.fixture(scope="module")
def cases(stories):
    found = json.loads((stories / "expected.json").read_text())["cases"]
    return [found["bos_only"], max(found.values(), key=lambda one: len(one["prompt_ids"]))]


def answers(stories, cases, device):
    """Greedy tokens of each case, and how many programs were made in steps."""
    params = SamplingParams(temperature=0, max_tokens=LENGTH, ignore_eos=True)
    with LLM(model=str(stories), device=device, **SMALL) as llm:
        made = llm.stats.num_compiled
        found = llm.generate([case["prompt_ids"] for case in cases], params)
        assert llm.stats.num_compiled == made, "a program was made in a step"
        return [list(one.outputs[0].token_ids) for one in found], made


@pytest.fixture(scope="module")
def right(stories, cases):
    """The CPU platform's, which are those that were published."""
    found, _ = answers(stories, cases, "cpu")
    assert found == [case["output_ids"][:LENGTH] for case in cases]
    return found


@pytest.mark.parametrize("chips", [1, 4])
def test_a_real_model_says_what_it_says_on_the_cpu_platform(stories, cases, right, chips):
    found, made = answers(stories, cases, f"tpu_simulated:chips={chips}")
    assert found == right
    assert made > STEPS
