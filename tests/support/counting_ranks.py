"""Several ranks that need no torch: each has a device that counts up, and may go wrong."""

import os
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any

from counting_engine import BLOCK_SIZE, NUM_COUNTED, CountingEngine, HangingRunner, counting

from engine.batch import Batch
from engine.errors import CapacityError
from engine.platform import Pending, Runner
from engine.ranks import GroupRunner, RankGroup
from engine.ranks.group import JOIN_S
from engine.ranks.messages import Joining

FOLLOW = "counting_ranks:follow"


class FaultyRunner(HangingRunner):
    """Does `fault` in `load`, or in step `at` when `at` is given."""

    def __init__(self, fault: str, at: int | None, num_blocks: int) -> None:
        super().__init__(
            num_blocks,
            block_size=BLOCK_SIZE,
            vocab_size=NUM_COUNTED,
            verify=False,
            hang_in="",
            hang_at=0,
        )
        self._fault, self._steps_left = fault, at

    def load(self) -> int:
        if self._steps_left is None:
            self._go_wrong()
        return super().load()

    def execute(self, batch: Batch) -> Pending:
        if self._steps_left is not None:
            self._steps_left -= 1
            if self._steps_left == 0:
                self._go_wrong()
        return super().execute(batch)

    def _go_wrong(self) -> None:
        match self._fault:
            case "raise":
                raise ZeroDivisionError("a device that cannot divide")
            case "no room":
                raise CapacityError("the weights do not fit here")
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "exit":
                print("last words", flush=True)
                os._exit(7)
            case "hang":
                time.sleep(600)


def follow(settings: Mapping[str, Any], rank: int, joining: Callable[[], None]) -> Runner:
    """Settings: `fault` and `fault_at` of rank `fault_rank`, `rank_blocks` by rank, `pids`."""
    if path := settings.get("pids"):
        with open(f"{path}/{rank}", "w") as file:
            file.write(f"{os.getpid()} {os.environ['WORLD_SIZE']} {os.environ.get('MINE', '')}")
    fault = settings.get("fault", "") if settings.get("fault_rank", 1) == rank else ""
    if fault == "before joining":
        raise RuntimeError("no such device")
    joining()
    return FaultyRunner(
        fault, settings.get("fault_at"), settings.get("rank_blocks", [1024] * 9)[rank]
    )


def ranked(settings: Mapping[str, Any]) -> CountingEngine:
    """An engine of `ranks` ranks; the other settings are those of `counting` and `follow`."""
    engine = counting(settings)
    group = RankGroup.start(
        FOLLOW,
        settings,
        settings.get("ranks", 2),
        lambda rank: {"MINE": f"of {rank}"},
        step_timeout_s=settings.get("step_timeout_s"),
    )
    try:
        group.await_each(Joining, "get ready", JOIN_S)
        runner = GroupRunner(engine.loop.runner, group)
        runner.load()
    except BaseException:
        group.close()
        raise
    engine.loop.runner = runner
    return RankedEngine(engine.loop, engine.facts)


class RankedEngine(CountingEngine):
    def close(self) -> None:
        self.loop.runner.close()
