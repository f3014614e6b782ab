"""A device that computes nothing: the token after n is n + 1. No torch.

The runner remembers its requests as a device does, so a step may be started before the tokens of
the one before were read. It also remembers what was written into every KV block, and fails a
step that a real device would compute wrongly: it is the oracle of the scheduler and of the cache.
"""

import time
from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from engine.batch import Admission, Batch, Logprobs, Slice, SliceOutput, StepOutput
from engine.errors import UnsupportedError
from engine.platform import (
    AttentionBackend,
    AttentionSpec,
    Availability,
    Capabilities,
    MemoryProfiler,
    MemorySnapshot,
    Pending,
    Platform,
    PlatformSpec,
    Runner,
    hookimpl,
)

#: The natural logarithm of the probability of whatever does not count up.
UNLIKELY = -100.0


@dataclass(slots=True)
class _Known:
    """What the device knows of one request."""

    admission: Admission
    tokens: list[int]
    history: list[int]  # history[i] identifies tokens 0..i: what KV at position i was made from
    computed: int | None = None  # None: no slice yet, which may start behind a cached prefix
    table: list[int] = field(default_factory=list)


class NullRunner(Runner):
    """Counts up, and checks every batch.

    `steps` are the batches so far. `blocks[b][i]` identifies the tokens (its own and all before
    it) that were last written at offset i of block b.

    Steps are counted from 1. In step `fail_at`, `execute` raises; in step `fail_result_at`, reading
    the result raises; in step `spoil_at`, the first slice ends in an error of its own.

    Raises:
        AssertionError: a batch that a real runner could not compute, or not correctly.
    """

    def __init__(
        self,
        num_blocks: int = 8,
        *,
        block_size: int = 16,
        vocab_size: int | None = None,
        max_requests: int | None = None,
        step_s: float = 0.0,
        verify: bool = True,
        fail_at: Collection[int] = (),
        fail_result_at: Collection[int] = (),
        spoil_at: Collection[int] = (),
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.vocab_size = vocab_size  # None: tokens grow without end
        self.max_requests = max_requests  # that may be known at once
        self.step_s = step_s  # what a step takes before its result can be read
        self.verify = verify
        self.fail_at = fail_at
        self.fail_result_at = fail_result_at
        self.spoil_at = spoil_at
        self.steps: list[Batch] = []
        self.blocks: dict[int, list[int | None]] = {}
        self._known: dict[int, _Known] = {}

    def load(self) -> int:
        return self.num_blocks

    def execute(self, batch: Batch) -> Pending:
        self.steps.append(batch)
        number = len(self.steps)
        if number in self.fail_at:
            raise RuntimeError(f"injected fault: step {number} was not started")
        for key in batch.released:
            assert key in self._known, f"request {key} is released, but is not known"
            del self._known[key]
        for admission in batch.admitted:
            self._admit(admission)
        self._copy(batch)
        outputs = self._compute(batch)
        if number in self.spoil_at:
            outputs[0] = SliceOutput(error=f"injected fault: step {number} spoilt this request")
        ready = time.monotonic() + self.step_s

        def wait() -> StepOutput:
            if self.step_s:
                time.sleep(max(0.0, ready - time.monotonic()))
            if number in self.fail_result_at:
                raise RuntimeError(f"injected fault: step {number} was lost")
            return StepOutput(tuple(outputs))

        return Pending(batch, wait)

    def reset(self) -> None:
        self._known.clear()
        self.blocks.clear()  # nothing may read what a failed step left

    def report(self) -> str:
        return f"null: {self.num_blocks} blocks of {self.block_size} tokens, no memory"

    def _admit(self, admission: Admission) -> None:
        key, tokens = admission.key, list(admission.tokens)
        assert key not in self._known, f"request {key} is admitted, but was not released before"
        assert 1 <= admission.num_prompt <= len(tokens), f"request {key} has no prompt"
        known = _Known(admission, tokens, [])
        self._known[key] = known
        self._extend_history(known)
        most = self.max_requests
        assert most is None or len(self._known) <= most, f"more than {most} requests are known"

    def _extend_history(self, known: _Known) -> None:
        if not self.verify:
            return
        history = known.history
        for token in known.tokens[len(history) :]:
            history.append(hash((history[-1] if history else None, token)))

    # A step

    def _copy(self, batch: Batch) -> None:
        sources = {source for source, _ in batch.copies}
        targets = [target for _, target in batch.copies]
        assert len(set(targets)) == len(targets), f"two copies have one target: {batch.copies}"
        assert not sources & set(targets), f"a block is copied and overwritten: {batch.copies}"
        for block in (*sources, *targets):
            self._check_block(block)
        for source, target in batch.copies:
            self.blocks[target] = list(self._content(source))

    def _compute(self, batch: Batch) -> list[SliceOutput]:
        keys = [part.key for part in batch.slices]
        assert len(set(keys)) == len(keys), f"a request has two slices in one step: {keys}"
        writers: dict[int, int] = {}
        for part in batch.slices:
            assert part.key in self._known, f"request {part.key} was never admitted"
            known = self._known[part.key]
            self._check_slice(known, part)
            if self.verify:
                # Run apart: whatever an earlier slice writes is there, and nothing else.
                self._check_content(known, part.key, part.start)
                self._write(known, part, writers)
            known.computed = part.stop
        if self.verify:
            for part in batch.slices:  # run together: all is written, then all is read
                self._check_content(self._known[part.key], part.key, part.stop)
        return [self._answer(self._known[part.key], part) for part in batch.slices]

    def _check_slice(self, known: _Known, part: Slice) -> None:
        """The slice continues what was computed, and its block table covers it."""
        key, table = part.key, known.table
        assert 0 <= part.start < part.stop, f"request {key} has an empty slice {part}"
        assert known.computed in (None, part.start), (
            f"request {key} was computed up to {known.computed}, its slice starts at {part.start}"
        )
        assert part.stop <= len(known.tokens), (
            f"request {key} has {len(known.tokens)} tokens, its slice ends at {part.stop}"
        )
        assert part.samples == (part.stop == len(known.tokens)), (
            f"request {key} must sample after its last token {len(known.tokens)} and only there:"
            f" {part}"
        )
        if part.blocks:
            assert part.blocks_from <= len(table), f"request {key} has a hole in its block table"
            table[part.blocks_from :] = part.blocks
        for block in part.blocks:
            self._check_block(block)
        assert len(set(table)) == len(table), f"request {key} has a block twice: {table}"
        assert len(table) * self.block_size >= part.stop, (
            f"request {key} has {len(table)} blocks of {self.block_size}, too few for {part.stop}"
        )

    def _check_block(self, block: int) -> None:
        assert 0 <= block < self.num_blocks, f"there is no block {block}"

    def _content(self, block: int) -> list[int | None]:
        return self.blocks.setdefault(block, [None] * self.block_size)

    def _check_content(self, known: _Known, key: int, stop: int) -> None:
        """Positions 0:stop of the request hold its own tokens."""
        size = self.block_size
        for i in range(-(-stop // size)):
            expected = known.history[i * size : min(stop, (i + 1) * size)]
            found = self._content(known.table[i])[: len(expected)]
            assert found == expected, (
                f"request {key} reads positions {i * size}:{i * size + len(expected)} from block"
                f" {known.table[i]}, which does not hold its tokens"
            )

    def _write(self, known: _Known, part: Slice, writers: dict[int, int]) -> None:
        for position in range(part.start, part.stop):
            block = known.table[position // self.block_size]
            writer = writers.setdefault(block, part.key)
            assert writer == part.key, (
                f"requests {writer} and {part.key} write block {block} in one step"
            )
            self._content(block)[position % self.block_size] = known.history[position]

    def _answer(self, known: _Known, part: Slice) -> SliceOutput:
        params, border = known.admission.params, known.admission.num_prompt
        prompt: tuple[Logprobs, ...] = ()
        if params.prompt_logprobs is not None:
            positions = range(part.start + 1, min(part.stop + 1, border))
            prompt = tuple(self._logprobs(known, position) for position in positions)
        if not part.samples:
            return SliceOutput(prompt_logprobs=prompt)
        known.tokens.append(self._after(known.tokens[-1]))
        self._extend_history(known)
        own = () if params.logprobs is None else (self._logprobs(known, part.stop),)
        return SliceOutput((known.tokens[-1],), own, prompt)

    def _after(self, token: int) -> int:
        return token + 1 if self.vocab_size is None else (token + 1) % self.vocab_size

    def _logprobs(self, known: _Known, position: int) -> Logprobs:
        token, certain = known.tokens[position], self._after(known.tokens[position - 1])
        logprob, rank = (0.0, 1) if token == certain else (UNLIKELY, 2)
        return Logprobs(token, logprob, rank, ((certain, 0.0),))


class NullMemory(MemoryProfiler):
    """There is no device: a number to divide by, none of it used."""

    kind = "statistics"

    def snapshot(self) -> MemorySnapshot:
        return MemorySnapshot(total=2**30, free=2**30, used=0, peak=0)

    def measure(self) -> AbstractContextManager[None]:
        return nullcontext()


class NullPlatform(Platform):
    """The null runner as a platform, on the narrow seam."""

    name = "null"
    capabilities = Capabilities(
        dtypes=("float32", "bfloat16", "float16"),
        kv_dtypes=("float32", "bfloat16", "float16"),
        block_sizes=(16, 1, 4, 8, 32),
        mixed_batches=True,
        chunked_prefill=True,
        prefix_reuse=True,
        overlap=True,
    )

    @property
    def device(self) -> str:
        return "meta:0"

    def memory(self) -> MemoryProfiler:
        return NullMemory()

    def attention(self, spec: AttentionSpec) -> AttentionBackend:
        raise UnsupportedError("the null platform computes nothing; it is used through its runner")

    def runner(self) -> Runner:
        config = self.config
        return NullRunner(
            256 if config.num_blocks is None else config.num_blocks,
            block_size=config.block_size or self.capabilities.block_sizes[0],
            max_requests=config.max_requests,
        )


class NullPlugin:
    """This module's hook as an object, for a plugin manager in a test."""

    @hookimpl
    def engine_platforms(self) -> list[PlatformSpec]:
        return [null_spec()]


def null_spec() -> PlatformSpec:
    """The null platform's spec, for whoever makes the engine with a plugin manager of their own."""
    return PlatformSpec(
        name="null",
        api=(1, 0),
        probe=probe,
        create=NullPlatform,
        priority=-100,  # never chosen by --device auto where there is anything else
    )


def probe() -> Availability:
    return Availability(1, "a device that computes nothing")


@hookimpl
def engine_platforms() -> list[PlatformSpec]:
    """As a package's module has it, so that another process can make the null platform."""
    return [null_spec()]
