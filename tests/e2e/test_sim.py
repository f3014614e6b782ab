"""A real model on the simulated accelerator: the published text, however its steps are formed."""

import json
from pathlib import Path

import pytest

from engine import LLM, SamplingParams

pytest.importorskip("engine_sim", reason="plugins/sim is not installed")

#: Settings that form steps otherwise, by name.
WAYS = {
    "usual": {},
    "chunked": {"max_batch_tokens": 7},
    "preempted": {"num_blocks": 9, "max_model_len": 128},
    "overlapped": {"overlap": True},
    "other blocks": {"block_size": 32},
}
LENGTH = 48  # tokens of output, of the 256 that were published
SMALL = {"max_requests": 6, "max_batch_tokens": 64, "dtype": "float32", "overlap": False}


@pytest.fixture(scope="module")
def stories(shared: Path) -> Path:
    return shared / "models" / "stories260K"


@pytest.fixture(scope="module")
def cases(stories):
    return json.loads((stories / "expected.json").read_text())["cases"]


def start(model, device, **settings):
    return LLM(model=str(model), device=device, **{**SMALL, **settings})


@pytest.mark.parametrize("device", ["sim", "sim:static"])
@pytest.mark.parametrize("way", WAYS)
def test_the_published_ids_together_and_no_program_made_in_a_step(stories, cases, device, way):
    with start(stories, device, **WAYS[way]) as llm:
        made = llm.stats.num_compiled
        assert (made > 0) == (device == "sim:static")
        wanted = [cases[name] for name in ("bos_only", "once", "tim")]
        params = [SamplingParams(temperature=0, max_tokens=LENGTH, ignore_eos=True) for _ in wanted]
        found = llm.generate([case["prompt_ids"] for case in wanted], params)
        for case, one in zip(wanted, found, strict=True):
            assert list(one.outputs[0].token_ids) == case["output_ids"][:LENGTH]
        if way == "preempted":
            assert llm.stats.num_preemptions > 0
        assert llm.stats.num_compiled == made


def test_the_whole_published_text_alone(stories, cases):
    case = cases["bos_only"]
    params = SamplingParams(temperature=0, max_tokens=len(case["output_ids"]), ignore_eos=True)
    with start(stories, "sim:static") as llm:
        made = llm.stats.num_compiled
        [found] = llm.generate([case["prompt_ids"]], params)
        assert list(found.outputs[0].token_ids) == case["output_ids"]
        assert llm.stats.num_compiled == made


@pytest.mark.parametrize("device", ["sim", "sim:static"])
def test_the_published_ids_from_a_prefix_that_is_cached(stories, cases, device):
    case = cases["tim"]
    greedy = SamplingParams(temperature=0, max_tokens=LENGTH, ignore_eos=True)
    with start(stories, device) as llm:
        made = llm.stats.num_compiled
        [first] = llm.generate([case["prompt_ids"]], greedy)
        known = case["prompt_ids"] + case["output_ids"][:LENGTH]
        [resumed] = llm.generate([known], greedy)
        assert list(first.outputs[0].token_ids) == case["output_ids"][:LENGTH]
        assert resumed.num_cached_tokens >= LENGTH - 16
        assert list(resumed.outputs[0].token_ids) == case["output_ids"][LENGTH : 2 * LENGTH]
        assert llm.stats.num_compiled == made


@pytest.mark.parametrize("device", ["sim", "sim:static"])
def test_the_embedded_model_answers_as_on_the_cpu(device):
    questions = ["2 + 3 =", "What is 12 + 30?", "Sort 5 3 9."]
    greedy = SamplingParams(temperature=0, max_tokens=12)
    with LLM(device="cpu", dtype="float32", max_requests=4) as llm:
        expected = [one.outputs[0].token_ids for one in llm.generate(questions, greedy)]
    with start("embedded", device, max_model_len=128) as llm:
        found = [one.outputs[0].token_ids for one in llm.generate(questions, greedy)]
    assert found == expected
