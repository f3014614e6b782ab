"""Every fault that can be asked for ends in an error that somebody sees."""

import subprocess
import sys

import pytest

from engine import LLM, SamplingParams
from engine.errors import EngineDeadError, EngineError
from engine.testing.checks.driving import expecting_failed_steps

GREEDY = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
SMALL = {"max_requests": 4, "max_batch_tokens": 64, "num_blocks": 32, "max_model_len": 64}


def answers(model, device, *prompts, **settings):
    """Of each prompt in turn: its tokens and why it ended."""
    found = []
    with LLM(model=model, device=device, **SMALL, **settings) as llm, expecting_failed_steps():
        for prompt in prompts:
            [output] = llm.generate([prompt], GREEDY)
            found.append((list(output.outputs[0].token_ids), output.outputs[0]))
    return found


@pytest.fixture(scope="module")
def right(model):
    [(tokens, _)] = answers(model, "cpu", [1, 2, 3], dtype="float32")
    return tokens


@pytest.mark.parametrize("words", ["", ":nosync", ":static", ":compile", ":3,static", ":h200"])
@pytest.mark.parametrize("overlap", [False, True])
def test_without_faults_the_tokens_are_those_of_the_cpu(model, right, words, overlap):
    [(tokens, _)] = answers(model, f"sim{words}", [1, 2, 3], overlap=overlap, dtype="float32")
    assert tokens == right


@pytest.mark.parametrize("static", ["", ",static"])
@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("raise", "sim:0: injected in step 3"),
        ("oom", "out of memory: tried to allocate"),
        ("garbage", "not finite numbers"),
    ],
)
def test_a_request_is_told_of_the_fault_and_the_next_one_is_right(
    model, right, fault, said, overlap, static
):
    asked = ([1, 2, 3], [1, 2, 3])
    lost, found = answers(model, f"sim:{fault}@3{static}", *asked, overlap=overlap)
    assert lost[1].finish_reason == "error"
    assert said in lost[1].error
    assert lost[0] == right[: len(lost[0])]
    # A step that fails takes with it the one before, where that was not read yet.
    assert len(lost[0]) == (1 if overlap and fault != "garbage" else 2)
    assert found[0] == right


@pytest.mark.parametrize("static", ["", ",static"])
def test_a_lost_device_ends_the_engine(model, static):
    with pytest.raises(EngineDeadError, match="sim:0 is lost: injected in step 3"):
        answers(model, f"sim:lost@3{static}", *[[1, 2, 3]] * 9, overlap=False)


@pytest.mark.parametrize("overlap", [False, True])
def test_a_lost_device_stays_lost_until_it_is_opened_again(model, right, overlap):
    lost = answers(model, "sim:lost@3", [1, 2, 3], [1, 2, 3], overlap=overlap)
    assert ["sim:0 is lost: injected in step 3" in one.error for _, one in lost] == [True, True]
    assert lost[0][0] == right[: len(lost[0][0])]
    assert not lost[1][0]
    [(tokens, _)] = answers(model, "sim", [1, 2, 3])
    assert tokens == right


def test_a_step_that_hangs_never_comes_back(model):
    """In a process of its own, which says when the step before was read."""
    code = (
        "from engine import LLM, SamplingParams\n"
        f"llm = LLM(model={model!r}, device='sim:hang@3', **{SMALL!r}, overlap=False)\n"
        "params = SamplingParams(max_tokens=6, ignore_eos=True)\n"
        "for piece in llm.stream([1, 2, 3], params):\n"
        "    print(piece.token_ids, flush=True)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline()
        assert child.stdout.readline()
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(timeout=1)
    finally:
        child.kill()
        child.communicate()


def test_a_device_that_is_too_small_says_what_fits(model):
    with pytest.raises(EngineError, match=r"KV blocks of .* MiB are left of 1\.0 MiB"):
        LLM(model=model, device="sim:memory=1MiB", **{**SMALL, "num_blocks": 4096})
