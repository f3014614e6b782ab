import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from counting_ranks import FOLLOW, follow

from engine import LLM, SamplingParams
from engine.client import AsyncEngine
from engine.errors import CapacityError, EngineDeadError, EngineError
from engine.platform import Runner
from engine.ranks import GroupRunner, RankGroup
from engine.ranks.messages import Joining
from engine.request import Submission

TARGET = "counting_ranks:ranked"
GREEDY = SamplingParams(temperature=0, max_tokens=20)

#: Far more than anything here takes; reached only when something hangs.
LIMIT_S = 20.0


def own() -> Runner:
    return follow({}, 0, lambda: None)


def start(size: int = 2, **settings: Any) -> RankGroup:
    return RankGroup.start(FOLLOW, settings, size, lambda rank: {})


def gone(pids: Path) -> bool:
    """Whether the processes that wrote there have ended."""
    return not any(psutil.pid_exists(int(one.read_text().split()[0])) for one in pids.iterdir())


def wait_until_gone(pids: Path) -> None:
    until = time.monotonic() + LIMIT_S
    while not gone(pids):
        assert time.monotonic() < until, "a rank was left behind"
        time.sleep(0.02)


def test_the_answer_of_three_ranks_is_that_of_rank_0(tmp_path: Path) -> None:
    with LLM(target=TARGET, ranks=3, pids=str(tmp_path)) as llm:
        assert llm.generate([[7], [100, 101]], GREEDY)[1].outputs[0].token_ids == tuple(
            range(102, 122)
        )
        assert sorted(one.name for one in tmp_path.iterdir()) == ["1", "2"]
        assert not gone(tmp_path)
    assert gone(tmp_path)


def test_a_rank_has_its_own_environment_and_rank_0_gets_its_own_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASTER_PORT", "the user's")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("MINE", "of 0")  # as rank 0 sets it for itself
    with LLM(target=TARGET, ranks=3, pids=str(tmp_path)):
        assert (tmp_path / "1").read_text().split(maxsplit=1)[1] == "3 of 1"
        assert (tmp_path / "2").read_text().split(maxsplit=1)[1] == "3 of 2"
        assert os.environ["WORLD_SIZE"] == "3"
        assert os.environ["MASTER_PORT"].isdecimal()
    assert os.environ["MASTER_PORT"] == "the user's"
    assert "WORLD_SIZE" not in os.environ


def test_what_the_user_set_for_every_rank_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINE", "the user's")
    with LLM(target=TARGET, pids=str(tmp_path)):
        assert (tmp_path / "1").read_text().endswith("2 the user's")


def test_there_are_as_many_blocks_as_the_smallest_rank_has() -> None:
    group = start(3, rank_blocks=[0, 50, 40])
    group.await_each(Joining, "get ready", LIMIT_S)
    runner = GroupRunner(own(), group)
    assert runner.load() == 40
    runner.close()
    runner.close()


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        ("raise", EngineDeadError, "rank 1 of 2 failed: ZeroDivisionError: a device that cannot"),
        ("no room", CapacityError, "rank 1 of 2 failed: the weights do not fit here"),
        ("die", EngineDeadError, "rank 1 of 2 failed: its process ended by SIGKILL"),
        ("exit", EngineDeadError, "rank 1 of 2 failed: its process ended with exit code 7"),
        ("before joining", EngineDeadError, "rank 1 of 2 failed: RuntimeError: no such device"),
    ],
)
def test_a_rank_that_fails_before_it_is_loaded_is_named(
    fault: str, error: type[EngineError], words: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        LLM(target=TARGET, fault=fault, pids=str(tmp_path))
    assert gone(tmp_path)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("raise", "rank 2 of 3 failed: ZeroDivisionError: a device that cannot divide"),
        ("die", "rank 2 of 3 failed: its process ended by SIGKILL"),
    ],
)
def test_a_rank_that_fails_in_a_step_ends_the_engine_and_is_named(
    fault: str, words: str, tmp_path: Path
) -> None:
    settings = {"fault": fault, "fault_at": 5, "fault_rank": 2, "step_s": 0.05}
    with LLM(target=TARGET, ranks=3, pids=str(tmp_path), **settings) as llm:
        for _ in range(2):
            with pytest.raises(EngineDeadError, match=words):
                llm.generate([[7]], SamplingParams(temperature=0, max_tokens=400))
    assert gone(tmp_path)


def test_a_rank_that_does_not_answer_in_time_is_named() -> None:
    group = start()
    try:
        group.await_each(Joining, "get ready", LIMIT_S)
        with pytest.raises(EngineDeadError, match=r"rank 1 of 2 did not sing within 0\.2 s"):
            group.await_each(Joining, "sing", 0.2)
    finally:
        group.close()


def test_an_error_of_rank_0_is_its_own() -> None:
    group = start()
    group.await_each(Joining, "get ready", LIMIT_S)
    try:
        error = group.explain(ValueError("mine"))
        assert isinstance(error, EngineDeadError)
        assert str(error) == "rank 0 of 2 failed: ValueError: mine"
    finally:
        group.close()


async def test_every_stream_is_told_which_rank_died(tmp_path: Path) -> None:
    settings = {"fault": "die", "fault_at": 20, "step_s": 0.02, "pids": str(tmp_path)}
    engine = await AsyncEngine.start(settings, target=TARGET)
    try:
        asked = SamplingParams(temperature=0, max_tokens=400)
        streams = [await engine.submit(Submission(str(i), (7,), asked)) for i in range(3)]
        async with asyncio.timeout(LIMIT_S):
            for stream in streams:
                with pytest.raises(EngineDeadError, match="rank 1 of 2 failed: its process ended"):
                    async for _ in stream:
                        pass
    finally:
        await engine.close()
    wait_until_gone(tmp_path)


async def test_a_killed_rank_0_takes_the_others_along(tmp_path: Path) -> None:
    engine = await AsyncEngine.start({"ranks": 3, "pids": str(tmp_path)}, target=TARGET)
    try:
        os.kill(engine.pid, signal.SIGKILL)
        await engine.wait_dead()
    finally:
        await engine.close()
    wait_until_gone(tmp_path)


async def test_a_rank_that_hangs_shows_where_and_ends_with_the_engine(tmp_path: Path) -> None:
    settings = {"fault": "hang", "fault_at": 3, "pids": str(tmp_path), "step_timeout_s": 0.2}
    lines: list[str] = []
    engine = await AsyncEngine.start(settings, target=TARGET, on_log=lines.append)
    stream = await engine.submit(Submission("a", (7,), GREEDY))
    async for _ in stream:  # this rank 0 has no collectives: it does not notice
        pass
    async with asyncio.timeout(LIMIT_S):
        while not any("_go_wrong" in line for line in lines):
            await asyncio.sleep(0.01)
    await engine.close()
    wait_until_gone(tmp_path)
    assert any("rank 1 engine.watchdog: a step has not ended" in line for line in lines)


def test_a_program_that_ends_without_closing_leaves_no_rank_behind(tmp_path: Path) -> None:
    program = (
        "from engine import LLM\n"
        f"llm = LLM(target={TARGET!r}, pids={str(tmp_path)!r})\n"
        "print('started')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        timeout=LIMIT_S,
    )
    assert done.stdout == b"started\n"
    wait_until_gone(tmp_path)
