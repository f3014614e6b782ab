"""Real trained models on simulated chips: the CPU platform's tokens."""

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
def published(stories, cases):
    """The CPU platform's tokens are those that were published."""
    found, _ = answers(stories, cases, "cpu")
    assert found == [case["output_ids"][:LENGTH] for case in cases]
    return found


@pytest.mark.parametrize("chips", [1, 4])
def test_a_real_model_says_what_was_published(stories, cases, published, chips):
    found, made = answers(stories, cases, f"tpu_simulated:chips={chips}")
    assert found == published
    assert made > STEPS


def calculate(device):
    """Answers, and the tokens up to LENGTH, for it would go on after the answer."""
    params = SamplingParams(temperature=0, max_tokens=LENGTH, ignore_eos=True)
    questions = [[{"role": "user", "content": one}] for one in ("12 + 30?", "What is 7 * 8?")]
    with LLM(device=device, **SMALL) as llm:
        found = [one.outputs[0] for one in llm.chat(questions, params)]
    return [one.text[:2] for one in found], [list(one.token_ids) for one in found]


@pytest.fixture(scope="module")
def calculated():
    """By the embedded model on the CPU platform."""
    answers, tokens = calculate("cpu")
    assert answers == ["42", "56"]
    return answers, tokens


@pytest.mark.parametrize("chips", [1, 4])  # it has two key/value heads: each is on two chips
def test_the_embedded_model_calculates_as_on_the_cpu_platform(calculated, chips):
    assert calculate(f"tpu_simulated:chips={chips}") == calculated
