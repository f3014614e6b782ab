"""Engine processes that start, fail, die, drain and close, and clients that do."""

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import counting_engine
import psutil
import pytest

from engine.client import AsyncEngine
from engine.errors import CapacityError, ConfigError, EngineDeadError, ModelError
from engine.request import Finish

from .streams import LIMIT_S, Start, collect, eventually, submission, tokens


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


async def test_signals_to_the_whole_group_leave_the_decision_to_the_client(start: Start) -> None:
    engine = await start()
    os.kill(engine.pid, signal.SIGINT)
    os.kill(engine.pid, signal.SIGTERM)
    assert tokens(await collect(engine, submission(max_tokens=2))) == [8, 9]


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
