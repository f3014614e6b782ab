"""Engine targets that need no torch: the real loop over a device that counts up."""

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.config import EngineConfig
from engine.errors import CapacityError, ModelError
from engine.facts import EngineFacts, ModelFacts
from engine.loop import EngineLoop
from engine.platform import Capabilities
from engine.testing.null import NullRunner

NUM_COUNTED = 256  # after the last of these tokens comes token 0
VOCAB_SIZE = 300
CONTEXT = 512
BLOCK_SIZE = 4


@dataclass
class CountingEngine:
    loop: EngineLoop
    facts: EngineFacts
    closed: bool = False

    def close(self) -> None:
        self.closed = True


def counting(settings: Mapping[str, Any]) -> CountingEngine:
    """Settings: `num_blocks`, `step_s` (what a step takes), `fail_at` (steps), `path`."""
    num_blocks = settings.get("num_blocks", 1024)
    runner = NullRunner(
        num_blocks,
        block_size=BLOCK_SIZE,
        vocab_size=NUM_COUNTED,
        step_s=settings.get("step_s", 0.0),
        fail_at=settings.get("fail_at", ()),
        verify=False,
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
    time.sleep(600)
    raise AssertionError("nobody waits that long")
