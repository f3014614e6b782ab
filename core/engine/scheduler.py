"""Decides which tokens are computed next.

There is one kind of work, "compute tokens start:stop of a request"; prefill, chunked prefill,
decode and resumption are only the names of its special cases.

Scheduling is optimistic: when a batch is made, `computed` moves and `pending` grows; `update`
settles it. So the next batch can be made before this one's tokens were read.

On a device with static shapes a step is padded to a bucket: it computes as many tokens of prompts
as fill one, where that is cheaper in the end than to overshoot it.
"""

from bisect import insort
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from engine.batch import Admission, Batch, Slice, SliceOutput, StepOutput
from engine.config import EngineConfig
from engine.errors import CapacityError
from engine.kvcache import Allocator, BlockPool
from engine.pace import Pace
from engine.platform.base import Capabilities
from engine.platform.shapes import Load, ShapeBuckets
from engine.request import Delta, Finish, Request, Summary


@dataclass(slots=True)
class _Step:
    """A batch in the making."""

    budget: int  # tokens that may still be added
    rows: int  # requests that may still be added
    prefills: int  # prompts among them
    slices: list[Slice] = field(default_factory=list)
    admitted: list[Admission] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)


class Scheduler:
    """`waiting` and `running` are kept in order of rank: priority, then arrival."""

    def __init__(
        self,
        config: EngineConfig,
        num_blocks: int,
        block_size: int,
        max_model_len: int,
        capabilities: Capabilities,
        clock: Callable[[], float],
        buckets: ShapeBuckets | None = None,
    ) -> None:
        self.allocator = Allocator(
            BlockPool(num_blocks),
            block_size,
            reuse=capabilities.prefix_reuse,
            caching=config.prefix_caching,
        )
        self.capabilities = capabilities
        self.buckets = buckets
        self.max_requests = config.max_requests
        # A prompt that may not be cut must fit a step, also one resumed at its greatest length.
        whole = 0 if capabilities.chunked_prefill else max_model_len
        self.max_batch_tokens = max(config.max_batch_tokens, whole)
        self.max_rows = self.max_requests  # of a step with prompts
        if buckets is not None:
            self.max_requests = min(self.max_requests, buckets.decodes[-1])
            self.max_rows = min(self.max_requests, buckets.requests[-1])
            self.max_batch_tokens = min(self.max_batch_tokens, buckets.tokens[-1])
            if capabilities.mixed_batches:
                self.max_requests = self.max_rows
        self.clock = clock
        self.pace = Pace(config.step_target_s)
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.num_preemptions = 0
        self._requests: dict[int, Request] = {}
        self._released: list[int] = []

    @property
    def idle(self) -> bool:
        return not self.waiting and not self.running

    def add(self, request: Request) -> None:
        """Let the request wait for its turn.

        Raises:
            CapacityError: it would not fit even if it were alone.
        """
        longest = len(request.prompt) + request.max_tokens
        pool = self.allocator.pool
        if self.allocator.num_blocks(longest) > pool.num_blocks:
            raise CapacityError(
                f"prompt and max_tokens need {longest} tokens of KV cache, but there are only"
                f" {pool.num_blocks * self.allocator.block_size}; ask for fewer tokens, or start"
                " the engine with more memory for the cache"
            )
        if self.buckets is not None and not self.buckets.admit(self._load(request), Load()):
            raise CapacityError(
                f"the device does not admit a request of {longest} tokens (prompt and max_tokens),"
                " even alone; ask for fewer tokens"
            )
        request.times.arrived = self.clock()
        self._requests[request.key] = request
        insort(self.waiting, request, key=_rank)

    def schedule(self) -> Batch:
        """The next batch; without slices when nothing can be computed now."""
        if self.capabilities.mixed_batches:
            step = self._begin(self.running)
            self._continue(step, list(self.running))
            self._admit(step)
        else:
            prompts = [r for r in self.running if not _decodes(r)]
            step = self._begin(prompts)
            self._continue(step, prompts)
            self._admit(step)
            if not step.slices:
                step = _Step(self.max_batch_tokens, self.max_requests, 0)
                self._continue(step, list(self.running))
        if not step.slices:
            return Batch()
        released, self._released = self._released, []
        return Batch(tuple(released), tuple(step.admitted), tuple(step.copies), tuple(step.slices))

    def update(self, batch: Batch, output: StepOutput) -> list[Delta]:
        """Apply a step's results; what changed, for every request that got something."""
        deltas = []
        for part, result in zip(batch.slices, output.slices, strict=True):
            request = self._requests.get(part.key)
            if request is None:  # it ended while this step was in flight
                continue
            request.pending -= part.samples
            if delta := self._apply(request, result):
                deltas.append(delta)
        return deltas

    def abort(self, id: str) -> list[Delta]:
        """End every unfinished continuation of the submission."""
        found = [r for r in self._requests.values() if r.id == id]
        return [self._end(request, Finish.ABORT) for request in found]

    def fail(self, message: str) -> list[Delta]:
        """End, after a failed step, every request that the device may know; trust no cached KV.

        The runner must be reset too: it may have forgotten nothing or everything.
        """
        touched = [r for r in self._requests.values() if r.pending or r.blocks]
        deltas = [self._end(request, Finish.ERROR, message) for request in touched]
        self._released.clear()
        self.allocator.pool.forget_all()
        return deltas

    # Making a batch

    def _begin(self, running: Sequence[Request]) -> _Step:
        """An empty step for these, and for some that wait."""
        most = self.capabilities.max_prefills
        prefills = self.max_rows if most is None else min(most, self.max_rows)
        return _Step(self._budget(running), self.max_rows, prefills)

    def _budget(self, running: Sequence[Request]) -> int:
        """Tokens of a step: all that a step may have, or as many as fill a bucket."""
        if not self.capabilities.chunked_prefill:
            return self.max_batch_tokens
        most = self._paced()
        if self.buckets is None:
            return most
        decodes = sum(map(_decodes, running))
        demand = sum(len(r) - r.computed for r in running)
        for request in self.waiting[: self.max_requests - len(self.running)]:
            if demand >= most:
                break
            demand += len(request) - self.allocator.num_cached(request)
        if demand == decodes:
            return most
        return max(self.buckets.fill(min(demand, most)), decodes + 1)

    def _paced(self) -> int:
        """The most tokens of a step: fewer while somebody decodes than while nobody does."""
        most, prompts = self.max_batch_tokens, self.pace.limit
        if prompts < most and (decodes := sum(map(_decodes, self.running))):
            return min(most, decodes + prompts)
        return most

    def _continue(self, step: _Step, requests: Iterable[Request]) -> None:
        for request in requests:
            if step.budget > 0 and request.blocks:  # without blocks: preempted a moment ago
                self._slice(step, request, may_preempt=True)

    def _admit(self, step: _Step) -> None:
        for request in list(self.waiting):
            if min(step.budget, step.rows, step.prefills) <= 0:
                return
            if len(self.running) >= self.max_requests or not self._joins(request):
                return
            if request.pending or self._awaits_leader(step, request):
                continue  # the runner must not meet it before its last token was seen here
            self._adopt(request)
            if not self._slice(step, request, may_preempt=False):
                self.allocator.release(request)
                return  # whoever comes next must not overtake it
            self.waiting.remove(request)
            insort(self.running, request, key=_rank)

    def _joins(self, request: Request) -> bool:
        """Whether the device admits it beside those that run."""
        if self.buckets is None:
            return True
        running = sum(map(self._load, self.running), Load())
        return self.buckets.admit(self._load(request), running)

    def _load(self, request: Request) -> Load:
        longest = len(request.prompt) + request.max_tokens
        return Load(1, longest, self.allocator.num_blocks(longest))

    def _awaits_leader(self, step: _Step, request: Request) -> bool:
        """Whether the prompt this request will share is not in the cache before this step."""
        leader = request.leader
        if leader is None or leader.finish or request.output or not self.allocator.reuse:
            return False
        # One that was just admitted may itself have found blocks that this step is to write.
        if not leader.blocks or any(one.key == leader.key for one in step.admitted):
            return True
        begins = [part.start for part in step.slices if part.key == leader.key]
        return min([leader.computed, *begins]) < len(leader.prompt)

    def _adopt(self, request: Request) -> None:
        leader = request.leader
        if leader and leader.blocks and self.allocator.reuse and not request.output:
            self.allocator.fork(leader, request)
        else:
            self.allocator.adopt_prefix(request)

    def _slice(self, step: _Step, request: Request, *, may_preempt: bool) -> bool:
        """Add the request's next slice to the step, if there is one and it fits."""
        length = len(request)
        missing = length - request.computed
        count = min(missing, step.budget)
        uncut = count == missing or self.capabilities.chunked_prefill
        is_prompt = missing > 1 or not may_preempt
        if count <= 0 or not uncut or not request.wants_more:
            return False
        if step.rows <= 0 or (is_prompt and step.prefills <= 0):
            return False
        stop = request.computed + count
        # A newcomer leaves some blocks for those who run, or it would be preempted at once.
        spare = 0 if may_preempt or not self.running else self.allocator.pool.num_blocks // 100
        while (reserved := self.allocator.reserve(request, stop, spare)) is None:
            if not may_preempt or not self._preempt_last(request):
                return False
        blocks, blocks_from = reserved.blocks, reserved.blocks_from
        if not may_preempt:
            step.admitted.append(self._introduce(request))
            blocks, blocks_from = tuple(request.blocks), 0
        samples = stop == length
        step.slices.append(Slice(request.key, request.computed, stop, samples, blocks, blocks_from))
        step.copies += reserved.copies
        step.budget -= count
        step.rows -= 1
        step.prefills -= is_prompt
        request.computed = stop
        request.pending += samples
        self.allocator.remember(request)
        return True

    def _introduce(self, request: Request) -> Admission:
        if not request.times.scheduled:
            request.times.scheduled = self.clock()
            request.num_cached = request.computed
            self.allocator.count_lookup(request)
        stop_ids = tuple(sorted(request.stop_ids))
        num_prompt = len(request.prompt)
        return Admission(
            request.key, request.tokens, num_prompt, request.params, request.seed, stop_ids
        )

    def _preempt_last(self, keep: Request) -> bool:
        """Send the lowest-ranked running request back to wait; False when that is `keep`."""
        victim = self.running[-1]
        if victim is keep:
            return False
        self._withdraw(victim)
        victim.num_preemptions += 1
        self.num_preemptions += 1
        insort(self.waiting, victim, key=_rank)
        return True

    # Ending

    def _apply(self, request: Request, result: SliceOutput) -> Delta | None:
        """Take a slice's tokens up to the first one that ends the request."""
        if result.error is not None:
            self.allocator.pool.forget(request.blocks)  # whoever reads them would fail, too
            return self._end(request, Finish.ERROR, result.error)
        taken, stop_id = 0, None
        for token in result.tokens:
            request.output.append(token)
            taken += 1
            request.finish, stop_id = _finish(request, token)
            if request.finish:
                break
        if taken and not request.times.first_token:
            request.times.first_token = self.clock()
        self.allocator.remember(request)
        if request.finish:
            self._leave(request)
        elif not taken and not result.prompt_logprobs:
            return None
        return Delta(
            request.id,
            request.index,
            tokens=result.tokens[:taken],
            logprobs=result.logprobs[:taken],
            prompt_logprobs=result.prompt_logprobs,
            finish=request.finish,
            stop_id=stop_id,
            summary=_summary(request) if request.finish else None,
        )

    def _end(self, request: Request, finish: Finish, error: str | None = None) -> Delta:
        request.finish = finish
        self._leave(request)
        return Delta(
            request.id, request.index, finish=finish, error=error, summary=_summary(request)
        )

    def _leave(self, request: Request) -> None:
        request.times.finished = self.clock()
        del self._requests[request.key]
        if request.blocks:
            self._withdraw(request)
        else:
            self.waiting.remove(request)

    def _withdraw(self, request: Request) -> None:
        """Out of the running ones; the runner will hear of it with the next batch."""
        self.running.remove(request)
        self.allocator.release(request)
        self._released.append(request.key)


def _rank(request: Request) -> tuple[int, int]:
    return request.rank


def _decodes(request: Request) -> bool:
    return len(request) - request.computed == 1


def _finish(request: Request, token: int) -> tuple[Finish | None, int | None]:
    """Why the request ends with its newest token, and the stop id when that is the reason."""
    if token in request.stop_ids and len(request.output) > request.params.min_tokens:
        return Finish.STOP, token
    if len(request.output) >= request.max_tokens:
        return Finish.LENGTH, None
    return None, None


def _summary(request: Request) -> Summary:
    times = request.times
    scheduled = times.scheduled or times.finished
    first_token = times.first_token or times.finished
    return Summary(
        num_prompt=len(request.prompt),
        num_output=len(request.output),
        num_cached=request.num_cached,
        num_preemptions=request.num_preemptions,
        queued_s=scheduled - times.arrived,
        prefill_s=first_token - scheduled,
        decode_s=times.finished - first_token,
    )
