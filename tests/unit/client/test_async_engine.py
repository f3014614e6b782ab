"""Requests to an engine in a process of its own: streams, aborts, refusals, and the border."""

import asyncio
import os
import stat
import sys
from pathlib import Path

import psutil
import pytest

from engine.errors import CapacityError, RequestError
from engine.facts import Stats
from engine.params import SamplingParams
from engine.request import Finish, Submission

from .streams import Start, collect, eventually, submission, tokens


async def test_a_stream_brings_all_tokens_and_ends(start: Start) -> None:
    engine = await start()
    deltas = await collect(engine, submission(max_tokens=5))
    assert tokens(deltas) == [8, 9, 10, 11, 12]
    assert [delta.finish for delta in deltas if delta.finish] == [Finish.LENGTH]
    assert deltas[-1].summary is not None
    assert deltas[-1].summary.num_output == 5
    assert engine.num_unfinished == 0
    assert engine.stats.num_running == 0
    assert engine.facts.platform == "null"
    assert engine.died is None
    assert engine.exit_code is None


async def test_all_continuations_come_through_one_stream(start: Start) -> None:
    engine = await start()
    deltas = await collect(engine, submission(n=3, max_tokens=4, seed=1))
    for index in range(3):
        assert tokens(deltas, index) == [8, 9, 10, 11]
    assert sum(delta.finish is Finish.LENGTH for delta in deltas) == 3


async def test_two_hundred_streams_at_once(start: Start) -> None:
    engine = await start()
    asked = [submission(str(i), (i % 200,), max_tokens=20) for i in range(200)]
    results = await asyncio.gather(*(collect(engine, one) for one in asked))
    for one, deltas in zip(asked, results, strict=True):
        assert tokens(deltas) == [(one.prompt[0] + 1 + i) % 256 for i in range(20)]
    assert engine.num_unfinished == 0
    assert engine.stats.num_running == engine.stats.num_waiting == 0


async def test_every_parameter_survives_the_border(start: Start) -> None:
    engine = await start()
    params = SamplingParams(
        logit_bias={5: -1.5},
        stop=("x", "y"),
        bad_token_ids=((1, 2), (3,)),
        seed=2**64 - 1,
        stop_token_ids=(12,),
        logprobs=1,
        prompt_logprobs=0,
        max_tokens=9,
    )
    deltas = await collect(engine, Submission("a", (7, 8), params, -3, "salt"))
    assert tokens(deltas) == [9, 10, 11, 12]
    assert deltas[-1].stop_id == 12
    assert all(len(delta.logprobs) == len(delta.tokens) for delta in deltas)
    assert [p.token for delta in deltas for p in delta.prompt_logprobs] == [8]


async def test_closing_an_iterator_aborts_its_request(start: Start) -> None:
    engine = await start(step_s=0.005)
    deltas = engine.stream(submission(max_tokens=400, n=2))
    await anext(deltas)
    assert engine.stats.num_running > 0
    await deltas.aclose()  # type: ignore[attr-defined]
    await eventually(lambda: engine.stats.num_running == engine.stats.num_blocks_held == 0)
    await eventually(lambda: engine.num_unfinished == 0)


async def test_cancelling_a_reader_aborts_its_request(start: Start) -> None:
    engine = await start(step_s=0.005)
    reader = asyncio.create_task(collect(engine, submission(max_tokens=400)))
    await eventually(lambda: engine.stats.num_running == 1)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    await eventually(lambda: engine.stats.num_running == 0)


async def test_a_request_cancelled_before_it_was_accepted_is_aborted_too(start: Start) -> None:
    engine = await start(step_s=0.2)
    busy = asyncio.create_task(collect(engine, submission("busy", max_tokens=8)))
    await eventually(lambda: engine.stats.num_running == 1)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):  # much less than a step
            await engine.submit(submission("late", max_tokens=400))
    deltas = await busy
    await eventually(lambda: engine.stats.num_running == engine.stats.num_waiting == 0)
    assert tokens(deltas) == list(range(8, 16))


async def test_an_aborted_stream_ends_with_a_last_delta_for_each_choice(start: Start) -> None:
    engine = await start(step_s=0.005)
    seen = []
    async for delta in engine.stream(submission(max_tokens=400, n=2)):
        seen.append(delta)
        engine.abort("a")
        engine.abort("unknown")
    finished = [delta for delta in seen if delta.finish]
    assert sorted(delta.index for delta in finished) == [0, 1]
    assert {delta.finish for delta in finished} == {Finish.ABORT}
    assert all(delta.summary for delta in finished)
    engine.abort("a")
    assert tokens(await collect(engine, submission(max_tokens=2))) == [8, 9]


async def test_a_refused_submission_raises_before_the_first_delta(start: Start) -> None:
    engine = await start(num_blocks=4)
    with pytest.raises(RequestError, match="maximum context length is 512 tokens") as caught:
        await engine.submit(submission(prompt=(1,) * 600))
    assert caught.value.parameter == "prompt"
    with pytest.raises(CapacityError, match="KV cache"):
        await anext(engine.stream(submission(prompt=(1,) * 100)))
    assert engine.num_unfinished == 0
    assert tokens(await collect(engine, submission(max_tokens=2))) == [8, 9]


async def test_what_cannot_be_sent_is_refused(start: Start) -> None:
    engine = await start()
    for prompt in ((2**70,), (1.5,), ("x",)):
        with pytest.raises(RequestError):
            await engine.submit(Submission("a", prompt, SamplingParams()))  # type: ignore[arg-type]
    with pytest.raises(RequestError):
        await engine.submit(Submission("a", (1,), SamplingParams(), cache_salt="\ud800"))
    assert engine.num_unfinished == 0
    assert tokens(await collect(engine, submission(max_tokens=2))) == [8, 9]


async def test_an_id_can_be_used_again_only_when_its_last_request_ended(start: Start) -> None:
    engine = await start(step_s=0.005)
    async with await engine.submit(submission(max_tokens=100)):
        with pytest.raises(RequestError, match="in use"):
            await engine.submit(submission())
    with pytest.raises(RequestError, match="in use"):  # or its last delta would reach this one
        await engine.submit(submission())
    await eventually(lambda: engine.num_unfinished == 0)
    assert len(tokens(await collect(engine, submission(max_tokens=2)))) == 2


async def test_an_idle_engine_does_not_spin(start: Start) -> None:
    engine = await start()
    await collect(engine, submission(max_tokens=3))
    process = psutil.Process(engine.pid)
    before = process.cpu_times()
    await asyncio.sleep(0.5)
    after = process.cpu_times()
    assert after.user + after.system - before.user - before.system < 0.1


async def test_only_this_user_can_reach_the_socket(start: Start) -> None:
    engine = await start()
    folder = Path(psutil.Process(engine.pid).cmdline()[-1].removeprefix("ipc://"))
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    await engine.close()
    assert not folder.exists()


async def test_garbage_on_the_socket_harms_nobody(start: Start) -> None:
    engine = await start(step_s=0.005)
    reader = asyncio.create_task(collect(engine, submission(max_tokens=50)))
    await eventually(lambda: engine.stats.num_running == 1)
    for garbage in (b"", b"\xc1", b"\x81\xa4type\xa6Submit", os.urandom(100)):
        engine._wire._orders.send(garbage)
    assert len(tokens(await reader)) == 50


async def test_statistics_are_handed_on_with_every_step(start: Start) -> None:
    engine = await start()
    seen: list[Stats] = []
    engine.on_stats = seen.append
    await collect(engine, submission(prompt=(1,) * 30, max_tokens=5))
    assert sum(stats.step_tokens for stats in seen) >= 30 + 4
    assert engine.stats == seen[-1]


async def test_neither_client_nor_engine_process_imports_torch() -> None:
    program = (
        "import sys, engine.client, engine.client.process\n"
        "print([name for name in ('torch', 'numpy', 'transformers') if name in sys.modules])\n"
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program), stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert output.strip() == b"[]"
