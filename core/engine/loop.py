"""The heart of the engine: schedule, execute, update, forever."""

import logging
import random
import time
from collections.abc import Callable
from dataclasses import replace

from engine.config import EngineConfig
from engine.errors import EngineDeadError, RequestError
from engine.facts import Stats
from engine.params import SEED_BITS
from engine.platform.base import Capabilities
from engine.platform.runner import Pending, Runner
from engine.platform.shapes import ShapeBuckets
from engine.request import Delta, Request, Submission
from engine.sampling import check
from engine.scheduler import Scheduler

#: A device that fails this many steps in a row will not recover by itself.
MAX_FAILURES = 3

log = logging.getLogger(__name__)


class EngineLoop:
    """Runs one engine. `runner` is loaded: `num_blocks` is what its `load` returned.

    `vocab_size` None takes any token id.
    """

    def __init__(
        self,
        config: EngineConfig,
        runner: Runner,
        *,
        num_blocks: int,
        block_size: int,
        max_model_len: int,
        capabilities: Capabilities,
        buckets: ShapeBuckets | None = None,
        vocab_size: int | None = None,
        eos_token_ids: tuple[int, ...] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.runner = runner
        self.max_model_len = max_model_len
        self.vocab_size = vocab_size
        self.eos_token_ids = eos_token_ids
        self.scheduler = Scheduler(
            config, num_blocks, block_size, max_model_len, capabilities, clock, buckets
        )
        self.overlap = capabilities.overlap if config.overlap is None else config.overlap
        self._clock = clock
        self._in_flight: Pending | None = None
        self._began = self._ended = 0.0  # when that step was started, and the last one was done
        self._random = random.Random(config.seed)
        self._next_key = 0
        self._failures = 0
        self._step_tokens = 0

    @property
    def idle(self) -> bool:
        """Nothing waits, runs or is in flight."""
        return self._in_flight is None and self.scheduler.idle

    def submit(self, submission: Submission) -> None:
        """Let the submission's `n` continuations wait for their turn, or none of them.

        Raises:
            RequestError: the prompt is empty or does not fit the context, or a token id is none of
                the model's: it would fail the step of others, too.
            CapacityError: a continuation could never fit the KV cache.
        """
        length = len(submission.prompt)
        if length == 0:
            raise RequestError("the prompt is empty: it needs at least one token", "prompt")
        if length >= self.max_model_len:
            raise RequestError(
                f"This model's maximum context length is {self.max_model_len} tokens, and the"
                f" prompt has {length}: leave room for at least one token of output",
                "prompt",
            )
        if self.vocab_size is not None:
            self._check_ids(submission, self.vocab_size)
        leader: Request | None = None
        for index in range(submission.params.n):
            request = self._request(submission, index, leader)
            self.scheduler.add(request)  # siblings are equal in size: the first one decides
            leader = leader or request

    def abort(self, id: str) -> list[Delta]:
        """End what is unfinished of the submission; nothing when there is nothing."""
        return self.scheduler.abort(id)

    def step(self) -> list[Delta]:
        """Start the next batch, then read the last one while the device is busy.

        A step that fails ends, with an error, the requests that were on the device; the rest
        goes on.

        Raises:
            EngineDeadError: several steps in a row failed.
        """
        try:
            return self._step()
        except Exception as error:
            log.exception("a step failed")
            return self._recover(error)

    def run_until_idle(self) -> list[Delta]:
        deltas = []
        while not self.idle:
            deltas += self.step()
        return deltas

    @property
    def stats(self) -> Stats:
        scheduler = self.scheduler
        pool = scheduler.allocator.pool
        return Stats(
            num_running=len(scheduler.running),
            num_waiting=len(scheduler.waiting),
            num_blocks=pool.num_blocks,
            num_blocks_held=pool.num_blocks - pool.num_free,
            num_preemptions=scheduler.num_preemptions,
            prefix_queries=scheduler.allocator.num_queries,
            prefix_hits=scheduler.allocator.num_hits,
            num_compiled=self.runner.num_compiled,
            step_tokens=self._step_tokens,
        )

    def _step(self) -> list[Delta]:
        batch = self.scheduler.schedule()
        self._step_tokens = batch.num_tokens
        began = self._clock()
        started = self.runner.execute(batch) if batch.slices else None
        if self.overlap:
            started, self._in_flight = self._in_flight, started
            began, self._began = self._began, began
        if started is None:
            return []
        result = started.result()
        began, self._ended = max(began, self._ended), self._clock()
        self.scheduler.pace.observe(started.batch, self._ended - began)
        self._failures = 0  # not when a step was only started: a lost device may accept it
        return self.scheduler.update(started.batch, result)

    def _recover(self, error: Exception) -> list[Delta]:
        self._in_flight = None
        self._failures += 1
        deltas = self.scheduler.fail(f"the engine failed to compute a step: {error}")
        if self._failures >= MAX_FAILURES:
            raise EngineDeadError(f"{self._failures} steps in a row failed: {error}") from error
        self.runner.reset()
        return deltas

    def _check_ids(self, submission: Submission, vocab_size: int) -> None:
        if min(submission.prompt) < 0 or max(submission.prompt) >= vocab_size:
            raise RequestError(
                f"the prompt has a token id that is not from 0 to {vocab_size - 1}", "prompt"
            )
        check(submission.params, vocab_size)

    def _request(self, submission: Submission, index: int, leader: Request | None) -> Request:
        params = submission.params
        if index > 0 and params.prompt_logprobs is not None:
            params = replace(params, prompt_logprobs=None)  # the first continuation reports them
        if params.seed is None:
            seed = self._random.getrandbits(SEED_BITS)
        else:
            seed = (params.seed + index) % 2**SEED_BITS
        room = self.max_model_len - len(submission.prompt)
        eos = () if params.ignore_eos else self.eos_token_ids
        self._next_key += 1
        return Request(
            key=self._next_key,
            id=submission.id,
            index=index,
            prompt=submission.prompt,
            params=params,
            seed=seed,
            max_tokens=room if params.max_tokens is None else min(params.max_tokens, room),
            stop_ids=frozenset((*params.stop_token_ids, *eos)),
            priority=submission.priority,
            cache_salt=submission.cache_salt,
            leader=leader,
        )
