"""A real trained model, and the text that was published for it: right to the last character."""

import json
from pathlib import Path

import pytest

from engine import LLM, SamplingParams

CASES = ("bos_only", "once", "tim")
VARIANTS = ("mistral", "qwen2", "phi3", "mixtral-same")


@pytest.fixture(scope="module")
def stories(shared: Path) -> Path:
    return shared / "models" / "stories260K"


@pytest.fixture(scope="module")
def expected(stories):
    return json.loads((stories / "expected.json").read_text())


@pytest.fixture(scope="module")
def llm(stories):
    with LLM(model=str(stories), device="cpu", dtype="float32") as llm:
        yield llm


def greedy(case, **changes):
    length = len(case["output_ids"])
    return SamplingParams(temperature=0, max_tokens=length, ignore_eos=True, **changes)


def run(llm, expected, names=CASES):
    """The published cases, all at once; asserts their ids."""
    cases = [expected["cases"][name] for name in names]
    found = llm.generate([c["prompt_ids"] for c in cases], [greedy(c) for c in cases])
    for name, case, result in zip(names, cases, found, strict=True):
        assert list(result.outputs[0].token_ids) == case["output_ids"], name
    return found


@pytest.mark.parametrize("name", CASES)
def test_alone(llm, expected, name):
    run(llm, expected, [name])


def test_the_published_text_to_the_last_character(llm, expected):
    [result] = llm.generate([[1]], greedy(expected["cases"]["bos_only"]))
    published = expected["published_text_256_steps_bos_only"]
    assert result.outputs[0].text.startswith(published[:200])
    assert result.outputs[0].text[: len(published)] == published


def test_a_text_prompt_gives_the_published_ids(llm, expected):
    case = expected["cases"]["tim"]
    [result] = llm.generate([case["prompt"]], greedy(case))
    assert list(result.prompt_token_ids) == case["prompt_ids"]
    assert result.prompt + result.outputs[0].text == case["hf_text"]


def test_in_a_batch_with_32_others(llm, expected):
    case = expected["cases"]["bos_only"]
    others = [[1, *range(300 + i, 300 + i + 3 * (i % 11) + 1)] for i in range(32)]
    prompts = [*others[:16], case["prompt_ids"], *others[16:]]
    lengths = [40 + 5 * i for i in range(16)] + [256] + [200 - 5 * i for i in range(16)]
    params = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for n in lengths]
    assert list(llm.generate(prompts, params)[16].outputs[0].token_ids) == case["output_ids"]


def test_prefix_hit(llm, expected):
    [first] = run(llm, expected, ["tim"])
    case = expected["cases"]["tim"]
    [second] = llm.generate([case["prompt_ids"]], greedy(case))
    assert second.num_cached_tokens == 0 or second.num_cached_tokens == 16 * (15 // 16)
    half = case["prompt_ids"] + case["output_ids"][:100]
    rest = SamplingParams(temperature=0, max_tokens=118, ignore_eos=True)
    [resumed] = llm.generate([half], rest)
    assert resumed.num_cached_tokens >= 96
    assert list(resumed.outputs[0].token_ids) == case["output_ids"][100:]
    assert first.outputs[0].text == second.outputs[0].text


def test_in_small_chunks(stories, expected):
    case = expected["cases"]["tim"]
    with LLM(model=str(stories), device="cpu", dtype="float32", max_batch_tokens=7) as llm:
        run(llm, expected)
        half = case["prompt_ids"] + case["output_ids"][:100]
        rest = SamplingParams(temperature=0, max_tokens=118, ignore_eos=True)
        [resumed] = llm.generate([half], rest)
        assert list(resumed.outputs[0].token_ids) == case["output_ids"][100:]


def test_preempted(stories, expected):
    """Three requests of some 257 tokens in a cache of 480."""
    settings = {"num_blocks": 30, "block_size": 16, "max_model_len": 400}
    with LLM(model=str(stories), device="cpu", dtype="float32", **settings) as llm:
        run(llm, expected)
        assert llm.stats.num_preemptions > 0


@pytest.mark.parametrize("overlap", [False, True], ids=["in turn", "overlapped"])
@pytest.mark.parametrize("block_size", [8, 16, 64])
def test_in_turn_and_overlapped_with_every_block_size(stories, expected, overlap, block_size):
    settings = {"overlap": overlap, "block_size": block_size}
    with LLM(model=str(stories), device="cpu", dtype="float32", **settings) as llm:
        run(llm, expected)


def test_siblings_share_the_prompt_and_give_the_same_text(llm, expected):
    case = expected["cases"]["once"]
    [result] = llm.generate([case["prompt_ids"]], greedy(case, n=3))
    assert [list(one.token_ids) for one in result.outputs] == [case["output_ids"]] * 3


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_same_weights_as_another_architecture_give_the_same_ids(shared, expected, variant):
    path = shared / "models" / f"stories260K-{variant}"
    with LLM(model=str(path), device="cpu", dtype="float32") as llm:
        run(llm, expected)
