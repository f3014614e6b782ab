import asyncio
import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from small_tokenizers import byte_level, write

from engine import LLM, AsyncLLM, SamplingParams
from engine.errors import CapacityError, ConfigError, EngineDeadError, ModelError, RequestError

#: After "a" comes "bcdef…": the tokens are bytes, and the device counts.
TARGET = "counting_engine:counting"


def greedy(max_tokens: int | None = 5, **params: object) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=max_tokens, **params)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write(byte_level(), tmp_path_factory.mktemp("model")))


@pytest.fixture
def llm(folder: str) -> Iterator[LLM]:
    with LLM(target=TARGET, path=folder) as llm:
        yield llm
        llm._engine.step()  # what is in flight belongs to nobody
        assert llm._engine.idle  # whatever was asked: nothing goes on
        assert llm._engine.stats.num_blocks_held == 0


@pytest.fixture
async def async_llm(folder: str) -> AsyncIterator[AsyncLLM]:
    async with await AsyncLLM.start(target=TARGET, path=folder, step_s=0.001) as llm:
        yield llm


def test_outputs_come_in_the_order_of_the_prompts(llm: LLM) -> None:
    prompts = ["a", "x", [104], (48, 49)]
    params = [greedy(count) for count in (9, 1, 5, 3)]
    outputs = llm.generate(prompts, params)
    assert [output.outputs[0].text for output in outputs] == ["bcdefghij", "y", "ijklm", "234"]
    assert [output.prompt for output in outputs] == ["a", "x", None, None]
    assert [output.prompt_token_ids for output in outputs] == [(97,), (120,), (104,), (48, 49)]
    assert {output.outputs[0].finish_reason for output in outputs} == {"length"}


@pytest.mark.parametrize("enabled", [True, False])
def test_the_start_leaves_the_garbage_collector_as_it_was(folder: str, enabled: bool) -> None:
    before = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        with LLM(target=TARGET, path=folder):
            assert gc.isenabled() is enabled
        with pytest.raises(ConfigError):
            LLM(target="nowhere:nothing")
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if before else gc.disable)()


def test_one_prompt_may_stand_alone(llm: LLM) -> None:
    for prompt in ("a", [97], (97,)):
        [output] = llm.generate(prompt, greedy(2))
        assert output.outputs[0].text == "bc"
    assert llm.generate([]) == []
    assert len(llm.generate("a")[0].outputs[0].token_ids) == 16  # the default


def test_stop_strings_end_the_text_and_the_computing(llm: LLM) -> None:
    [output] = llm.generate("a", greedy(200, stop=("def",)))
    [choice] = output.outputs
    assert (choice.text, choice.finish_reason, choice.stop_reason) == ("bc", "stop", "def")
    assert choice.token_ids == tuple(b"bcdef")


def test_stop_tokens_are_named(llm: LLM) -> None:
    [choice] = llm.generate("a", greedy(200, stop_token_ids=(100,)))[0].outputs
    assert (choice.text, choice.finish_reason, choice.stop_reason) == ("bc", "stop", 100)


def test_logprobs_and_several_continuations(llm: LLM) -> None:
    [output] = llm.generate("ab", greedy(3, n=2, logprobs=1, prompt_logprobs=0))
    assert [choice.index for choice in output.outputs] == [0, 1]
    for choice in output.outputs:
        assert choice.logprobs is not None
        assert [entry.token for entry in choice.logprobs] == list(choice.token_ids)
        assert choice.cumulative_logprob == 0.0
    assert output.prompt_logprobs is not None
    assert [p and p.token for p in output.prompt_logprobs] == [None, 98]


def test_a_bad_request_among_many_is_named_before_anything_runs(llm: LLM) -> None:
    with pytest.raises(RequestError, match="prompt 1: the prompt is empty") as caught:
        llm.generate(["a", "", "b"])
    assert caught.value.parameter == "prompt"
    with pytest.raises(RequestError, match="prompt 2: This model's maximum context length"):
        llm.generate(["a", "b", "c" * 600])
    with pytest.raises(RequestError, match="2 sampling parameters for 3 prompts"):
        llm.generate(["a", "b", "c"], [greedy(), greedy()])
    with pytest.raises(RequestError, match="cannot be mixed"):
        llm.generate(["a", 5])  # type: ignore[list-item]
    assert llm._engine.idle


def test_what_the_engine_refuses_takes_back_the_others(folder: str) -> None:
    with LLM(target=TARGET, path=folder, num_blocks=4) as llm:
        with pytest.raises(CapacityError, match="prompt 1: "):
            llm.generate(["a", "b" * 100, "c"], greedy(2))
        assert llm._engine.idle
        assert llm.generate("a", greedy(2))[0].outputs[0].text == "bc"


def test_a_request_that_fails_on_the_way_says_so(folder: str) -> None:
    with LLM(target=TARGET, path=folder, fail_at=[3]) as llm:
        [choice] = llm.generate("a", greedy(50))[0].outputs
        assert choice.finish_reason == "error"
        assert "injected fault" in str(choice.error)
        assert llm.generate("a", greedy(2))[0].outputs[0].text == "bc"


def test_a_chat_answers_until_the_end_of_the_turn(llm: LLM) -> None:
    ask = [{"role": "user", "content": "Hi"}]
    [output] = llm.chat(ask, greedy(3), mood="!")
    assert output.prompt == "<s>[user]Hi<end>![assistant]"
    assert output.outputs[0].text == "^_`"  # after "]"
    outputs = llm.chat([ask, [*ask, *ask]], greedy(2))
    assert [len(output.prompt_token_ids) for output in outputs] == [21, 30]
    [whole] = llm.chat(ask)
    assert len(whole.prompt_token_ids) + len(whole.outputs[0].token_ids) == 512
    with pytest.raises(RequestError, match="prompt 1: the chat template refused"):
        llm.chat([ask, [{"role": "tool", "content": "x"}]])


def test_a_stream_gives_the_text_piece_by_piece(llm: LLM) -> None:
    pieces = list(llm.stream("a", greedy(6, stop=("zz",))))
    assert "".join(piece.text for piece in pieces) == "bcdefg"
    assert len(pieces) == 6
    assert [piece.finish is not None for piece in pieces] == [False] * 5 + [True]
    with pytest.raises(RequestError, match="empty"):
        llm.stream("")


def test_streams_that_are_open_together_do_not_disturb_each_other(llm: LLM) -> None:
    one, two = llm.stream("a", greedy(4)), llm.stream("k", greedy(6))
    texts = [next(one).text, next(two).text, next(two).text]
    assert llm.generate("x", greedy(2))[0].outputs[0].text == "yz"
    texts += [piece.text for piece in one]
    texts += [piece.text for piece in two]
    assert "".join(texts) == "blmcdenopq"


def test_a_stream_that_is_left_ends_its_request(llm: LLM) -> None:
    for piece in llm.stream("a", greedy(300)):
        assert piece.text == "b"
        break
    llm._engine.step()
    llm._engine.step()
    assert llm._engine.idle


def test_a_stream_that_was_never_read_costs_nothing(llm: LLM) -> None:
    llm.stream("a", greedy(300))
    assert llm._engine.idle


def test_progress_is_shown_where_asked_for(llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    llm.generate(["a", "b"], greedy(2))
    assert capsys.readouterr().out == ""
    llm.generate(["a", "b"], greedy(2), progress=True)
    assert "100%" in capsys.readouterr().out


def test_a_model_without_tokenizer_takes_and_gives_ids(tmp_path: Path) -> None:
    with LLM(target=TARGET, path=str(tmp_path)) as llm:
        assert llm.tokenizer is None
        [choice] = llm.generate([7, 8], greedy(3))[0].outputs
        assert (choice.token_ids, choice.text) == ((9, 10, 11), "")
        with pytest.raises(RequestError, match="no tokenizer"):
            llm.generate("a")
        with pytest.raises(RequestError, match="no tokenizer"):
            llm.chat([{"role": "user", "content": "x"}])


def test_an_engine_that_cannot_be_made_says_why(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model in /nowhere"):
        LLM("/nowhere", target="counting_engine:without_model")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        LLM(target="no_such_module:x")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="tokenizer"):
        LLM(target=TARGET, path=str(tmp_path))


async def test_the_asynchronous_one_does_the_same(async_llm: AsyncLLM, llm: LLM) -> None:
    prompts = [chr(97 + i) for i in range(20)]
    params = [greedy(1 + i, stop=("z",), n=1 + i % 2) for i in range(20)]
    apart, inside = await async_llm.generate(prompts, params), llm.generate(prompts, params)
    assert [output.outputs for output in apart] == [output.outputs for output in inside]
    ask = [{"role": "user", "content": "Hi"}]
    [output] = await async_llm.chat(ask, greedy(3))
    assert output.outputs == llm.chat(ask, greedy(3))[0].outputs
    texts = [piece.text async for piece in async_llm.stream("a", greedy(200, stop=("fgh",)))]
    assert "".join(texts) == "bcde"


async def test_leaving_an_asynchronous_stream_ends_its_request(async_llm: AsyncLLM) -> None:
    stream = async_llm.stream("a", greedy(400))
    assert (await anext(stream)).text == "b"
    await stream.aclose()  # type: ignore[attr-defined]
    await _idle(async_llm)


async def test_cancelling_an_asynchronous_generate_ends_its_requests(async_llm: AsyncLLM) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await async_llm.generate(["a"] * 10, greedy(500))
    await _idle(async_llm)


async def test_a_bad_request_among_many_asynchronous_ones(folder: str) -> None:
    async with await AsyncLLM.start(target=TARGET, path=folder, num_blocks=4) as llm:
        with pytest.raises(RequestError, match="prompt 2: the prompt is empty"):
            await llm.generate(["a", "b", ""])
        with pytest.raises(CapacityError, match="prompt 1: "):
            await llm.generate(["a", "b" * 100, "c"], greedy(2))
        await _idle(llm)


async def test_a_dead_engine_ends_an_asynchronous_generate(async_llm: AsyncLLM) -> None:
    running = asyncio.create_task(async_llm.generate(["a"] * 5, greedy(500)))
    while async_llm.engine.stats.num_running < 5:
        await asyncio.sleep(0.005)
    os.kill(async_llm.engine.pid, signal.SIGKILL)
    with pytest.raises(EngineDeadError):
        await running


def test_importing_the_engine_is_quick_and_brings_no_torch() -> None:
    program = (
        "import sys, time\n"
        "began = time.process_time()\n"
        "import engine\n"
        "print(time.process_time() - began)\n"
        "print({'torch', 'numpy', 'transformers', 'zmq'} & sys.modules.keys())\n"
        "from engine import LLM, AsyncLLM, SamplingParams\n"
        "print('torch' in sys.modules, 'transformers' in sys.modules)\n"
    )
    output = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, text=True
    )
    seconds, modules, heavy = output.stdout.splitlines()
    assert float(seconds) < 0.3
    assert modules == "set()"
    assert heavy == "False False"


async def _idle(llm: AsyncLLM) -> None:
    deadline = time.monotonic() + 20
    while llm.engine.num_unfinished or llm.engine.stats.num_running:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)
