"""`engine serve` with real models, asked by the official client."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from serving import Serving, serving

from engine.embedded import path as embedded_path
from engine.embedded.world import is_right, questions


@pytest.fixture(scope="module")
def stories(shared: Path) -> Path:
    return shared / "models" / "stories260K"


@pytest.fixture(scope="module")
def expected(stories: Path) -> dict:
    return json.loads((stories / "expected.json").read_text())


@pytest.fixture(scope="module")
def story_server(stories: Path) -> Iterator[Serving]:
    with serving(str(stories), "--device", "cpu", "--dtype", "float32") as server:
        yield server


@pytest.fixture(scope="module")
def embedded_server() -> Iterator[Serving]:
    with serving("--device", "cpu") as server:
        yield server


def client(server: Serving) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120
    )


async def test_the_published_text_in_a_batch_with_32_others(story_server, stories, expected):
    case = expected["cases"]["bos_only"]
    published = expected["published_text_256_steps_bos_only"]
    async with client(story_server) as openai_client:

        async def complete(prompt, max_tokens):
            answer = await openai_client.completions.create(
                model=str(stories),
                prompt=prompt,
                max_tokens=max_tokens,
                temperature=0,
                extra_body={"ignore_eos": True},
            )
            return answer.choices[0].text

        others = [complete([1, 300 + i, 40 + i], 20 + 6 * i) for i in range(32)]
        text, *_ = await asyncio.gather(complete(case["prompt_ids"], 256), *others)
    assert text[: len(published)] == published


async def test_the_streamed_text_is_the_published_one(story_server, stories, expected):
    for case in expected["cases"].values():
        async with client(story_server) as openai_client:
            stream = await openai_client.completions.create(
                model=str(stories),
                prompt=case["prompt_ids"],
                max_tokens=len(case["output_ids"]),
                temperature=0,
                stream=True,
                stream_options={"include_usage": True},
                extra_body={"ignore_eos": True},
            )
            chunks = [chunk async for chunk in stream]
        text = "".join(choice.text for chunk in chunks for choice in chunk.choices)
        assert case["prompt"] + text == case["hf_text"]
        assert chunks[-1].usage.completion_tokens == len(case["output_ids"])


async def test_the_published_texts_when_chunked_preempted_and_found_in_the_cache(stories, expected):
    """Three requests of some 257 tokens, in steps of 7 tokens and a cache of 480. Then again, each
    continuing the first half of its text."""
    small = ("--max-batch-tokens", "7", "--max-model-len", "400")
    small += ("--num-blocks", "30", "--block-size", "16")
    with serving(str(stories), "--device", "cpu", "--dtype", "float32", *small) as server:
        async with client(server) as openai_client:

            async def continued(case, known):
                answer = await openai_client.completions.create(
                    model=str(stories),
                    prompt=case["prompt_ids"] + case["output_ids"][:known],
                    max_tokens=len(case["output_ids"]) - known,
                    temperature=0,
                    extra_body={"ignore_eos": True, "return_token_ids": True},
                )
                return answer.choices[0]

            cases = list(expected["cases"].values())
            whole = await asyncio.gather(*(continued(case, 0) for case in cases))
            assert [
                case["prompt"] + choice.text for case, choice in zip(cases, whole, strict=True)
            ] == [case["hf_text"] for case in cases]
            assert server.metric("vllm:num_preemptions_total") > 0
            halves = await asyncio.gather(*(continued(case, 100) for case in cases))
            for case, choice in zip(cases, halves, strict=True):
                assert choice.token_ids == case["output_ids"][100:]
            assert server.metric("vllm:prefix_cache_hits_total") > 0
        assert server.settles("vllm:kv_cache_usage_perc")


async def test_200_concurrent_streams_end_correctly_and_leave_nothing_behind(embedded_server):
    known = ("capital", "chat", "colour", "multiply", "reverse", "unit")
    asked = list(questions(200, seed=11, split="held_out", kinds=known))
    async with client(embedded_server) as openai_client:

        async def reply(question):
            stream = await openai_client.chat.completions.create(
                model="embedded",
                messages=question.messages,
                tools=question.tools or openai.omit,
                temperature=0,
                max_tokens=64,
                stream=True,
            )
            text, finishes = "", []
            async for chunk in stream:
                for choice in chunk.choices:
                    text += choice.delta.content or ""
                    finishes += [choice.finish_reason] if choice.finish_reason else []
            return text, finishes

        replies = await asyncio.gather(*map(reply, asked))
    assert all(len(finishes) == 1 for _, finishes in replies)
    right = sum(is_right(one, text) for one, (text, _) in zip(asked, replies, strict=True))
    assert right >= 0.95 * len(asked)
    assert embedded_server.settles("vllm:num_requests_running")
    assert embedded_server.settles("vllm:kv_cache_usage_perc")
    assert embedded_server.metric("vllm:generation_tokens_total") > 200


async def test_a_client_that_leaves_a_stream_frees_its_blocks(embedded_server):
    async with client(embedded_server) as openai_client:
        stream = await openai_client.completions.create(
            model="embedded",
            prompt="Tell me a story.",
            max_tokens=1500,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        async for _ in stream:
            break
        assert embedded_server.metric("vllm:num_requests_running") == 1
        await stream.close()
    assert embedded_server.settles("vllm:num_requests_running")
    assert embedded_server.settles("vllm:kv_cache_usage_perc")


def test_the_model_shipped_with_the_engine_is_small_and_has_no_pickle():
    files = [path for path in embedded_path().iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 8 * 2**20
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".md", ".jinja"}
