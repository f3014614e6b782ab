"""Engine targets that need no torch: the real loop over a device that counts up."""

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.batch import Batch, StepOutput
from engine.config import EngineConfig
from engine.errors import CapacityError, ModelError
from engine.facts import EngineFacts, ModelFacts
from engine.loop import EngineLoop
from engine.platform import Capabilities, Pending
from engine.testing.null import NullRunner

NUM_COUNTED = 256  # after the last of these tokens comes token 0
VOCAB_SIZE = 300
CONTEXT = 512
FOREVER_S = 600.0
BLOCK_SIZE = 4


@dataclass
class CountingEngine:
    loop: EngineLoop
    facts: EngineFacts
    closed: bool = False

    def close(self) -> None:
        self.closed = True


class HangingRunner(NullRunner):
    """Hangs in step `hang_at`, in the way that `hang_in` names."""

    def __init__(self, num_blocks: int, *, hang_in: str, hang_at: int, **options: Any) -> None:
        super().__init__(num_blocks, **options)
        self._hang_in, self._left = hang_in, hang_at

    def execute(self, batch: Batch) -> Pending:
        self._left -= 1
        hangs = self._left == 0
        if hangs and self._hang_in == "execute":
            time.sleep(FOREVER_S)
        if hangs and self._hang_in == "spin":
            until = time.monotonic() + FOREVER_S
            while time.monotonic() < until:
                pass
        pending = super().execute(batch)
        if hangs and self._hang_in == "result":
            return Pending(batch, self._never_result)
        return pending

    def _never_result(self) -> StepOutput:
        time.sleep(FOREVER_S)
        raise AssertionError("nobody waits that long")


def counting(settings: Mapping[str, Any]) -> CountingEngine:
    """Settings: `num_blocks`, `step_s` (what a step takes), `fail_at` (steps), `path`,
    `step_timeout_s`, and `hang_in` ("execute", "result" or "spin") with `hang_at`.
    """
    num_blocks = settings.get("num_blocks", 1024)
    runner = HangingRunner(
        num_blocks,
        block_size=BLOCK_SIZE,
        vocab_size=NUM_COUNTED,
        step_s=settings.get("step_s", 0.0),
        fail_at=settings.get("fail_at", ()),
        verify=False,
        hang_in=settings.get("hang_in", ""),
        hang_at=settings.get("hang_at", 0),
    )
    capabilities = Capabilities(
        mixed_batches=True, chunked_prefill=True, prefix_reuse=True, overlap=True
    )
    loop = EngineLoop(
        EngineConfig(),
        runner,
        num_blocks=num_blocks,
        block_size=BLOCK_SIZE,
        max_model_len=CONTEXT,
        capabilities=capabilities,
    )
    model = ModelFacts(
        name="counting",
        path=settings.get("path", ""),
        architecture="Counting",
        dtype="float32",
        vocab_size=VOCAB_SIZE,
        max_model_len=CONTEXT,
        eos_token_ids=(),
    )
    facts = EngineFacts(
        model=model,
        platform="null",
        device="null:0",
        dtype="float32",
        max_model_len=CONTEXT,
        block_size=BLOCK_SIZE,
        num_blocks=num_blocks,
        prefix_caching=True,
        ledger="",
        step_timeout_s=settings.get("step_timeout_s"),
    )
    return CountingEngine(loop, facts)


def without_model(settings: Mapping[str, Any]) -> CountingEngine:
    raise ModelError(f"there is no model in {settings['model']}")


def without_room(settings: Mapping[str, Any]) -> CountingEngine:
    raise CapacityError("weights do not fit", "memory_fraction")


def broken(settings: Mapping[str, Any]) -> CountingEngine:
    raise ZeroDivisionError("not on purpose")


def killed(settings: Mapping[str, Any]) -> CountingEngine:
    print("last words", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def hanging(settings: Mapping[str, Any]) -> CountingEngine:
    time.sleep(FOREVER_S)
    raise AssertionError("nobody waits that long")
