"""Two ranks on the CPU compute what one process computes."""

import asyncio
import os
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import transformers
from serving import serving

from engine import LLM, AsyncLLM, RequestOutput, SamplingParams
from engine.errors import ConfigError, EngineDeadError, ModelError
from engine_cpu.processor import Processor

pytestmark = pytest.mark.skipif(Processor().cores < 2, reason="each rank wants a core of its own")

SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MODELS = {
    "llama": ("LlamaForCausalLM", {"attention_bias": True}),
    "mixtral": ("MixtralForCausalLM", {"num_local_experts": 4}),
    "odd vocabulary, tied": (
        "LlamaForCausalLM",
        {"vocab_size": 97, "num_key_value_heads": 1, "tie_word_embeddings": True},
    ),
}
PROMPTS = [list(range(3, 40, 2)), [5], list(range(90, 30, -1)), [7, 7, 7]]

#: Far more than anything here takes; reached only when something hangs.
LIMIT_S = 60.0


@dataclass
class Pair:
    """A model, alone and divided."""

    folder: Path
    one: LLM
    two: LLM


def save(architecture: str, folder: Path, **settings: object) -> Path:
    """A random model with clearly unequal logits."""
    model_class = getattr(transformers, architecture)
    torch.manual_seed(7)
    model = model_class(model_class.config_class(**(SIZES | settings))).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
            else:
                parameter.mul_(3.0 if "embed" not in name else 8.0)
    model.tie_weights()
    model.save_pretrained(folder)
    return folder


def start(model: str, ranks: int, **settings: Any) -> LLM:
    return LLM(model, "cpu", dtype="float32", tensor_parallel=ranks, **settings)


@pytest.fixture(scope="module", params=MODELS)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    architecture, settings = MODELS[request.param]
    folder = save(architecture, tmp_path_factory.mktemp("model"), **settings)
    # Few tokens a step and few blocks: prompts are chunked, and requests preempted.
    limits = {"max_batch_tokens": 32, "block_size": 8, "num_blocks": 24, "max_requests": 8}
    with start(str(folder), 1, **limits) as one, start(str(folder), 2, **limits) as two:
        yield Pair(folder, one, two)


def tokens(outputs: list[RequestOutput]) -> list[tuple[int, ...]]:
    return [choice.token_ids for output in outputs for choice in output.outputs]


def logprobs(outputs: list[RequestOutput]) -> list[float]:
    found = []
    for output in outputs:
        found += [each.logprob for each in output.prompt_logprobs or () if each is not None]
        for choice in output.outputs:
            assert choice.logprobs is not None
            found += [each.logprob for each in choice.logprobs]
            found += [value for each in choice.logprobs for _, value in each.top]
    return found


def test_greedy_tokens_and_their_logprobs_are_those_of_one_process(pair: Pair) -> None:
    params = SamplingParams(
        temperature=0, max_tokens=40, ignore_eos=True, logprobs=3, prompt_logprobs=0
    )
    alone, divided = pair.one.generate(PROMPTS, params), pair.two.generate(PROMPTS, params)
    assert tokens(divided) == tokens(alone)
    assert logprobs(divided) == pytest.approx(logprobs(alone), abs=1e-4)
    assert pair.two.stats.num_preemptions > 0


def test_logprobs_are_those_of_transformers(pair: Pair) -> None:
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True, logprobs=0)
    model = transformers.AutoModelForCausalLM.from_pretrained(pair.folder, dtype=torch.float32)
    for prompt, output in zip(PROMPTS, pair.two.generate(PROMPTS, params), strict=True):
        [choice] = output.outputs
        ids = torch.tensor([[*prompt, *choice.token_ids]])
        with torch.no_grad():
            expected = model(ids).logits[0].float().log_softmax(-1)
        at = torch.arange(len(prompt) - 1, ids.shape[1] - 1)
        assert choice.token_ids == tuple(expected[at].argmax(-1).tolist())
        assert logprobs([output]) == pytest.approx(
            expected[at, list(choice.token_ids)].tolist(), abs=1e-4
        )


def test_sampled_tokens_with_seeds_are_those_of_one_process(pair: Pair) -> None:
    params = [
        SamplingParams(temperature=1.5, max_tokens=40, ignore_eos=True, seed=seed, **filters)
        for seed, filters in enumerate(
            [{}, {"top_k": 20}, {"top_p": 0.8, "n": 3}, {"min_p": 0.01, "repetition_penalty": 1.3}]
        )
    ]
    alone, divided = pair.one.generate(PROMPTS, params), pair.two.generate(PROMPTS, params)
    assert tokens(divided) == tokens(alone)
    assert len(set(tokens(divided))) == 6  # they are random


def test_the_embedded_model_answers_as_in_one_process() -> None:
    asked = [[{"role": "user", "content": text}] for text in ("What is 3 + 4?", "Sort 9 2 5")]
    params = [SamplingParams(temperature=0, max_tokens=40), SamplingParams(seed=3, max_tokens=40)]
    with start("embedded", 1) as one, start("embedded", 2) as two:
        for each in params:
            assert tokens(two.chat(asked, each)) == tokens(one.chat(asked, each))
        assert two.facts.tensor_parallel == 2
        assert 0.4 < weights(two) / weights(one) < 0.6  # each rank has its share only


@pytest.mark.parametrize("words", ["", ":1,0,static"])
def test_two_simulated_devices_have_the_tokens_of_one_process(words: str) -> None:
    """With static shapes, the programs hold the collectives, and nothing else runs in a step."""
    pytest.importorskip("engine_sim", reason="plugins/sim is not installed")
    limits = {"dtype": "float32", "max_requests": 4, "max_batch_tokens": 64, "max_model_len": 128}
    params = [
        SamplingParams(temperature=0, max_tokens=20, ignore_eos=True),
        SamplingParams(temperature=1.2, max_tokens=20, ignore_eos=True, seed=4),
    ]
    with LLM(device="cpu", **limits) as one:
        expected = [tokens(one.generate(PROMPTS, each)) for each in params]
    with LLM(device=f"sim{words}", tensor_parallel=2, **limits) as two:
        assert [tokens(two.generate(PROMPTS, each)) for each in params] == expected


def weights(llm: LLM) -> float:
    """MiB, from the ledger."""
    found = re.search(r"^weights +([\d.]+) MiB", llm.facts.ledger, re.MULTILINE)
    assert found is not None
    return float(found[1])


def test_what_cannot_be_divided_is_refused(tmp_path: Path) -> None:
    folder, before = str(save("LlamaForCausalLM", tmp_path, intermediate_size=111)), children()
    with pytest.raises(
        ModelError, match="feed-forward width of 111 cannot be divided evenly over 2"
    ):
        start(folder, 2)
    assert children() == before


def test_more_ranks_than_devices_are_refused_before_any_is_started() -> None:
    ranks = Processor().cores + 1
    with pytest.raises(ConfigError, match=f"tensor_parallel {ranks} needs as many devices"):
        start("embedded", ranks)
    with pytest.raises(ConfigError, match="names 2 devices, but tensor_parallel is 1"):
        LLM(device="cpu:0,1")


def children() -> list[psutil.Process]:
    """The ranks that this process started."""
    return [one for one in psutil.Process().children() if "engine.ranks.process" in one.cmdline()]


def test_a_rank_killed_between_two_requests_is_named() -> None:
    before = children()
    with start("embedded", 2) as llm:
        [rank] = set(children()) - set(before)
        llm.generate([[5]], SamplingParams(max_tokens=2))
        rank.kill()
        began = time.monotonic()
        with pytest.raises(
            EngineDeadError, match="rank 1 of 2 failed: its process ended by SIGKILL"
        ):
            llm.generate([[5]], SamplingParams(max_tokens=2))
        assert time.monotonic() - began < LIMIT_S


@pytest.mark.parametrize(
    ("number", "words"),
    [(signal.SIGKILL, "rank 1 of 2 failed"), (signal.SIGSTOP, r"did not end within 2 s")],
)
async def test_a_rank_that_dies_or_hangs_in_a_step_ends_all_requests(
    number: signal.Signals, words: str
) -> None:
    llm = await AsyncLLM.start("embedded", "cpu:0,1", tensor_parallel=2, step_timeout_s=2)
    try:
        [rank] = psutil.Process(llm.engine.pid).children()
        endless = SamplingParams(temperature=0, max_tokens=1500, ignore_eos=True)
        running = [asyncio.create_task(llm.generate([[5, i]], endless)) for i in range(3)]
        while llm.engine.stats.num_running < 3:
            await asyncio.sleep(0.01)
        rank.send_signal(number)
        async with asyncio.timeout(LIMIT_S):
            for one in await asyncio.gather(*running, return_exceptions=True):
                assert isinstance(one, EngineDeadError)
                assert re.search(words, str(one))
    finally:
        if rank.is_running():
            os.kill(rank.pid, signal.SIGCONT)
        await llm.close()
    rank.wait(LIMIT_S)


def test_the_server_has_the_tokens_of_one_process() -> None:
    asked = {
        "model": "embedded",
        "prompt": [5, 6, 7],
        "max_tokens": 30,
        "temperature": 1.0,
        "seed": 9,
    }
    answers = []
    for ranks in ("1", "2"):
        options = ("--device", "cpu", "--dtype", "float32", "--tensor-parallel", ranks)
        with serving(*options) as server:
            answer = server.http.post("/v1/completions", json=asked)
            assert answer.status_code == 200, answer.text
            answers.append(answer.json()["choices"][0]["text"])
            engine = psutil.Process(server.process.pid).children(recursive=True)
            assert len(engine) == int(ranks)
    assert answers[0] == answers[1]
    psutil.wait_procs(engine, timeout=LIMIT_S)
    assert not any(one.is_running() for one in engine)
