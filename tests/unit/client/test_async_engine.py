import asyncio
import os
import signal
import stat
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import counting_engine
import psutil
import pytest

from engine.client import AsyncEngine
from engine.errors import CapacityError, ConfigError, EngineDeadError, ModelError, RequestError
from engine.facts import Stats
from engine.params import SamplingParams
from engine.request import Delta, Finish, Submission

Start = Callable[..., Awaitable[AsyncEngine]]

#: Far more than anything here takes; reached only when something hangs.
LIMIT_S = 20.0


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    engines: list[AsyncEngine] = []

    async def start_one(target: str = "counting", **settings: Any) -> AsyncEngine:
        engines.append(await AsyncEngine.start(settings, target=f"counting_engine:{target}"))
        return engines[-1]

    yield start_one
    for engine in engines:
        await engine.close()
        assert not psutil.pid_exists(engine.pid)


def submission(
    id: str = "a", prompt: tuple[int, ...] = (7,), priority: int = 0, **params: Any
) -> Submission:
    return Submission(id, prompt, SamplingParams(temperature=0, **params), priority)


async def collect(engine: AsyncEngine, asked: Submission) -> list[Delta]:
    return [delta async for delta in engine.stream(asked)]


def tokens(deltas: list[Delta], index: int = 0) -> list[int]:
    return [token for delta in deltas if delta.index == index for token in delta.tokens]


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            await asyncio.sleep(0.005)


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


async def test_a_failed_step_ends_its_requests_and_the_engine_goes_on(start: Start) -> None:
    engine = await start(fail_at=[3])
    deltas = await collect(engine, submission(max_tokens=100))
    assert deltas[-1].finish is Finish.ERROR
    assert "injected fault" in str(deltas[-1].error)
    assert tokens(await collect(engine, submission(max_tokens=2))) == [8, 9]


async def test_when_the_engine_is_killed_every_stream_raises_at_once(start: Start) -> None:
    engine = await start(step_s=0.01)
    readers = [
        asyncio.create_task(collect(engine, submission(str(i), max_tokens=500))) for i in range(20)
    ]
    await eventually(lambda: engine.stats.num_running == 20)
    assert engine.died is None
    os.kill(engine.pid, signal.SIGKILL)
    began = time.monotonic()
    async with asyncio.timeout(LIMIT_S):
        results = await asyncio.gather(*readers, return_exceptions=True)
        died = await engine.wait_dead()
    assert time.monotonic() - began < 2
    assert all(isinstance(result, EngineDeadError) for result in results)
    assert "SIGKILL" in str(died)
    assert engine.died is died
    assert engine.exit_code == -signal.SIGKILL
    with pytest.raises(EngineDeadError):
        await engine.submit(submission())
    assert not await engine.drain(1)


async def test_a_stopped_engine_that_is_killed_fails_a_waiting_submission(start: Start) -> None:
    engine = await start()
    os.kill(engine.pid, signal.SIGSTOP)
    waiting = asyncio.create_task(engine.submit(submission()))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    os.kill(engine.pid, signal.SIGKILL)
    with pytest.raises(EngineDeadError):
        async with asyncio.timeout(LIMIT_S):
            await waiting


async def test_a_device_that_does_not_recover_ends_the_engine(start: Start) -> None:
    engine = await start(fail_at=list(range(1, 100)))
    for id in range(3):  # the loop gives up after three failures in a row
        with pytest.raises(EngineDeadError, match="injected fault") if id == 2 else _nothing():
            await collect(engine, submission(str(id), max_tokens=3))
    assert "steps in a row" in str(await engine.wait_dead())
    await eventually(lambda: engine.exit_code == 1)


async def test_errors_at_start_arrive_as_they_were_raised(start: Start) -> None:
    with pytest.raises(ModelError, match="there is no model in /nowhere"):
        await start("without_model", model="/nowhere")
    with pytest.raises(CapacityError, match="do not fit") as caught:
        await start("without_room")
    assert caught.value.parameter == "memory_fraction"
    with pytest.raises(EngineDeadError, match="ZeroDivisionError: not on purpose"):
        await start("broken")
    with pytest.raises(ConfigError, match="counting_engine:unknown"):
        await start("unknown")


async def test_a_process_that_ends_while_starting_is_noticed() -> None:
    lines: list[str] = []
    with pytest.raises(EngineDeadError, match="SIGKILL"):
        async with asyncio.timeout(LIMIT_S):
            await AsyncEngine.start({}, target="counting_engine:killed", on_log=lines.append)
    assert lines == ["last words"]


async def test_a_start_that_is_given_up_leaves_no_process(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.client.async_engine.PATIENCE_S", 0.2)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1.0):
            await start("hanging")
    assert not [child for child in psutil.Process().children() if _is_engine(child)]


async def test_draining_waits_for_the_running_and_refuses_the_new(start: Start) -> None:
    engine = await start(step_s=0.005)
    reader = asyncio.create_task(collect(engine, submission(max_tokens=50)))
    await eventually(lambda: engine.stats.num_running == 1)
    draining = asyncio.create_task(engine.drain(LIMIT_S))
    await asyncio.sleep(0)
    with pytest.raises(EngineDeadError, match="shutting down"):
        await engine.submit(submission("b"))
    assert await draining
    assert len(tokens(await reader)) == 50


async def test_draining_aborts_what_is_left_at_the_deadline(start: Start) -> None:
    engine = await start(step_s=0.01)
    reader = asyncio.create_task(collect(engine, submission(max_tokens=500)))
    await eventually(lambda: engine.stats.num_running == 1)
    began = time.monotonic()
    assert not await engine.drain(0.1)
    assert time.monotonic() - began < 3
    assert (await reader)[-1].finish is Finish.ABORT


async def test_draining_an_idle_engine_is_over_at_once(start: Start) -> None:
    assert await (await start()).drain(0.0)


async def test_closing_fails_open_streams_and_ends_with_code_zero(start: Start) -> None:
    engine = await start(step_s=0.01)
    reader = asyncio.create_task(collect(engine, submission(max_tokens=500)))
    await eventually(lambda: engine.stats.num_running == 1)
    await engine.close()
    with pytest.raises(EngineDeadError, match="closed"):
        await reader
    assert engine.exit_code == 0
    assert engine.died is None
    with pytest.raises(EngineDeadError):
        await engine.submit(submission())
    await engine.close()


async def test_an_idle_engine_does_not_spin(start: Start) -> None:
    engine = await start()
    await collect(engine, submission(max_tokens=3))
    process = psutil.Process(engine.pid)
    before = process.cpu_times()
    await asyncio.sleep(0.5)
    after = process.cpu_times()
    assert after.user + after.system - before.user - before.system < 0.1


async def test_signals_to_the_whole_group_leave_the_decision_to_the_client(start: Start) -> None:
    engine = await start()
    os.kill(engine.pid, signal.SIGINT)
    os.kill(engine.pid, signal.SIGTERM)
    assert tokens(await collect(engine, submission(max_tokens=2))) == [8, 9]


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


async def test_a_client_that_is_killed_takes_the_engine_along() -> None:
    program = (
        "import asyncio\n"
        "from engine.client import AsyncEngine\n"
        "async def main():\n"
        "    engine = await AsyncEngine.start({}, target='counting_engine:counting')\n"
        "    print(engine.pid, flush=True)\n"
        "    await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(counting_engine.__file__).parent)}
    client = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program), stdout=asyncio.subprocess.PIPE, env=environment
    )
    assert client.stdout is not None
    engine = psutil.Process(int(await client.stdout.readline()))
    client.kill()
    await client.wait()
    await eventually(lambda: not _alive(engine))


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


class _nothing:
    def __enter__(self) -> None: ...

    def __exit__(self, *exc: object) -> None: ...


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _is_engine(process: psutil.Process) -> bool:
    return "engine.client.process" in process.cmdline()
