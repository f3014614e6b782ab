import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import psutil
import pytest

from engine import LLM, SamplingParams
from engine.client import AsyncEngine
from engine.errors import EngineDeadError
from engine.request import Submission
from engine.watchdog import InterruptingWatchdog, Watchdog

TIMEOUT_S = 0.3

#: Far more than anything here takes; reached only when something hangs.
LIMIT_S = 20.0


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """As Python starts; a shell that runs the tests in the background has interrupts ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def submission(id: str) -> Submission:
    return Submission(id, (7,), SamplingParams(temperature=0, max_tokens=400))


@pytest.mark.parametrize("where", ["execute", "result"])
async def test_a_step_that_hangs_ends_every_request_and_the_process(where: str) -> None:
    lines: list[str] = []
    engine = await AsyncEngine.start(
        {"hang_in": where, "hang_at": 10, "step_s": 0.02, "step_timeout_s": TIMEOUT_S},
        target="counting_engine:counting",
        on_log=lines.append,
    )
    try:
        streams = [await engine.submit(submission(str(i))) for i in range(3)]
        await asyncio.sleep(0.25)  # it hangs by now: this one is never taken
        late = asyncio.create_task(engine.submit(submission("waiting")))
        async with asyncio.timeout(LIMIT_S):
            for stream in streams:
                with pytest.raises(
                    EngineDeadError, match=r"within 0\.3 s \(step_timeout_s\).*hung"
                ):
                    async for _ in stream:
                        pass
            with pytest.raises(EngineDeadError, match="hung"):
                await late
            died = await engine.wait_dead()
            with pytest.raises(EngineDeadError, match="hung"):
                await engine.submit(submission("late"))
            while engine.exit_code is None:
                await asyncio.sleep(0.01)
    finally:
        await engine.close()
    assert engine.exit_code == 1
    assert "raise step_timeout_s or lower max_batch_tokens" in str(died)
    assert not psutil.pid_exists(engine.pid)
    log = "\n".join(lines)
    assert "a step has not ended within 0.3 s" in log
    assert f"in _{where}" in log or f"in {where}" in log  # a stack that tells where it was


def test_a_step_that_holds_the_interpreter_ends_the_process_too() -> None:
    """Python's threads stand still then, so the process can only be ended, and its stacks shown."""
    program = (
        "import ctypes\n"
        "from engine.watchdog import Watchdog\n"
        "def hold():\n"
        "    ctypes.PyDLL(None).sleep(600)\n"  # a PyDLL keeps the interpreter's lock
        "with Watchdog(0.1, lambda began: None, kill_s=0.5):\n"
        "    hold()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=LIMIT_S
    )
    assert done.returncode == 1
    assert "Timeout" in done.stderr
    assert "in hold" in done.stderr


async def test_slow_steps_within_the_limit_are_no_hang() -> None:
    engine = await AsyncEngine.start(
        {"step_s": 0.5 * TIMEOUT_S, "step_timeout_s": TIMEOUT_S}, target="counting_engine:counting"
    )
    try:
        asked = Submission("a", (7,), SamplingParams(temperature=0, max_tokens=5))
        deltas = [delta async for delta in engine.stream(asked)]
        assert [token for delta in deltas for token in delta.tokens] == [8, 9, 10, 11, 12]
        await asyncio.sleep(2 * TIMEOUT_S)  # nothing to do is no hang, either
        assert engine.died is None
    finally:
        await engine.close()


@pytest.mark.parametrize("where", ["execute", "result", "spin"])
def test_a_step_that_hangs_in_this_process_raises_in_the_thread_that_called(
    where: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with LLM(
        target="counting_engine:counting", hang_in=where, hang_at=5, step_timeout_s=TIMEOUT_S
    ) as llm:
        began = time.monotonic()
        for _ in range(2):  # and after it, at once
            with pytest.raises(EngineDeadError, match=r"did not end within 0\.3 s"):
                llm.generate([[1, 2, 3]], SamplingParams(temperature=0, max_tokens=50))
        assert time.monotonic() - began < LIMIT_S
    assert "counting_engine.py" in capfd.readouterr().err


def in_thread(work: Callable[[], object]) -> list[BaseException]:
    """What the work raised, in a thread of its own."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(LIMIT_S)
    assert not thread.is_alive()
    return raised


def test_a_thread_that_is_not_the_main_one_is_interrupted_as_well() -> None:
    watchdog = InterruptingWatchdog(0.2)

    def spin() -> None:
        until = time.monotonic() + LIMIT_S
        while time.monotonic() < until:
            pass

    try:
        [error] = in_thread(lambda: watchdog.run(spin))
        assert isinstance(error, EngineDeadError)
    finally:
        watchdog.close()


def test_a_step_that_ends_as_it_is_found_hanging_leaves_no_interruption_behind() -> None:
    """Steps end at about the moment at which the watchdog decides; nothing may come later."""
    for tenths in range(8, 15):
        watchdog = InterruptingWatchdog(0.02)
        with suppress(EngineDeadError):
            watchdog.run(lambda length=0.002 * tenths: time.sleep(length))
        for _ in range(20_000):
            pass
        time.sleep(0.01)
        watchdog.close()


def test_the_users_own_interrupt_stays_one() -> None:
    watchdog = InterruptingWatchdog(60)
    try:
        with pytest.raises(KeyboardInterrupt):
            watchdog.run(lambda: signal.raise_signal(signal.SIGINT))
        assert watchdog.run(lambda: 3) == 3
    finally:
        watchdog.close()


@pytest.mark.parametrize("timeout_s", [None, 0])
def test_without_a_limit_there_is_no_thread(timeout_s: float | None) -> None:
    before = threading.active_count()
    watchdog = Watchdog(timeout_s, lambda began: None)
    assert threading.active_count() == before
    watchdog.close()


def test_time_in_which_the_process_was_stopped_does_not_count() -> None:
    program = (
        "import time\n"
        "from engine.watchdog import Watchdog\n"
        "watchdog = Watchdog(1.0, lambda began: print('hung', flush=True))\n"
        "with watchdog:\n"
        "    until = time.monotonic() + 1.9\n"  # before it can be stopped
        "    print('begun', flush=True)\n"
        "    while time.monotonic() < until:\n"
        "        time.sleep(0.01)\n"
        "watchdog.close()\n"
        "print('done', flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process:
        assert process.stdout.readline() == "begun\n"
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(1.4)
        os.kill(process.pid, signal.SIGCONT)
        assert process.stdout.read() == "done\n"
