"""Runs a model on a platform's parts: one runner for every device that torch can drive."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from engine.batch import Batch, Logprobs, SliceOutput, StepOutput
from engine.config import EngineConfig
from engine.models.model import Model
from engine.platform import (
    AttentionBackend,
    AttentionSpec,
    Communicator,
    MemoryProfiler,
    OpTable,
    Pending,
    Platform,
    Runner,
    Shape,
    ShapeBuckets,
    SoloCommunicator,
    StepInputs,
)
from engine.runner.agreement import Agreement
from engine.runner.layers import Layers
from engine.runner.memory import STATISTICS_SHARE, Ledger, size_cache
from engine.runner.rehearsal import dummy_batch, largest_steps, smaller_step
from engine.runner.static import StaticSteps
from engine.runner.table import Arranged, Indices, RequestTable
from engine.sampling.logprobs import prompt_logprobs
from engine.sampling.sampler import Choice, Sampled, Sampler

#: Largest steps are measured at this size first, then at a multiple of it and so on, as long as the
#: next one may be expected to take no longer than this. What was multiplied gets some more: small
#: steps are a few pages, and were found off by a quarter.
SAMPLE_TOKENS, SAMPLE_GROWTH = 8, 8
MEASURE_S = 0.15
MULTIPLIED = 1.25

#: What a cache shrinks to, of itself, where compiled programs did not fit beside it.
SHRINK = 0.75

log = logging.getLogger(__name__)


class ModelRunner(Runner):
    """`load_model` is called once, by `load`; so the memory before and after can be compared."""

    def __init__(
        self,
        config: EngineConfig,
        platform: Platform,
        load_model: Callable[[], Model],
        *,
        ops: OpTable,
        vocab_size: int,
        block_size: int,
        max_model_len: int,
        buckets: ShapeBuckets | None = None,
        communicator: Communicator | None = None,
    ) -> None:
        self.config = config
        self.platform = platform
        self.vocab_size = vocab_size
        self.block_size = block_size
        self.max_model_len = max_model_len
        self._load_model = load_model
        self._ops = ops
        self._graphs = platform.graphs()
        self._buckets = buckets
        self._agreed = Agreement(communicator or SoloCommunicator(), platform.device)
        self._static: StaticSteps | None = None
        self._explained: set[int] = set()  # requests that asked for their prompt's logprobs
        self.ledger: Ledger | None = None

    @property
    def num_compiled(self) -> int:
        return self._graphs.num_compiled

    @torch.inference_mode()
    def load(self) -> int:
        """Load the weights, measure a step, size and allocate the KV cache.

        Raises:
            CapacityError: weights, activations and one block do not fit the device.
        """
        memory = self.platform.memory()
        start = memory.snapshot()
        self.model = self._load_model()
        self._backends = self._choose_backends(self.model.attention_specs())
        self.model.fuse(
            [
                prologue is not None and backend.fuses(prologue)
                for backend, prologue in zip(self._backends, self.model.prologues(), strict=True)
            ]
        )
        self._make_tables()
        if self._static is None:
            self._graphs.will_project(self.model.logits, self.vocab_size)
        activations = self._measure_step()
        memory.release_cached()
        block_bytes = sum(one.kv_layout().bytes_per_block for one in self._backends)
        blocks_a_request = -(-self.max_model_len // self.block_size)
        self.ledger = size_cache(
            start=start,
            loaded=memory.snapshot(),
            weights=self.model.num_bytes,
            activations=activations + (block_bytes if self._static else 0),
            fraction=self.config.memory_fraction,
            block_bytes=block_bytes,
            block_size=self.block_size,
            most_blocks=blocks_a_request * self.config.max_requests,
            wanted=self.config.num_blocks,
            cache_share=memory.cache_share,
            programs=self._graphs.reserve(activations),
        )
        self.ledger = self.ledger.cut(self._agreed.least(self.ledger.num_blocks))
        while not self._warm_up(may_shrink=self._may_shrink(memory)):
            memory.release_cached()
            smaller = max(1, int(self.ledger.num_blocks * SHRINK))
            self.ledger = self.ledger.cut(smaller, "all that compiled programs leave")
        return self.ledger.num_blocks

    @torch.inference_mode()
    def execute(self, batch: Batch) -> Pending:
        for key in batch.released:
            self._release(key)
        for admission in batch.admitted:
            self._sampler.admit(self._table.admit(admission), admission)
            if admission.params.prompt_logprobs is not None:
                self._explained.add(admission.key)
        if batch.copies:
            self._layers.copy(batch.copies)
        step = self._table.arrange(batch)
        self._table.update_blocks(step)
        logits = self._compute(step)
        sampled = self._sample(step, logits)
        choices = sampled.fetch(self.platform.to_host) if sampled else list
        prompts = self._prompt_logprobs(step, logits)
        return Pending(batch, lambda: _collect(step, choices(), prompts))

    def reset(self) -> None:
        for key in list(self._table.admissions):
            self._release(key)

    def report(self) -> str:
        if self.ledger is None:
            return ""
        parts = (str(self.ledger), self._graphs.report(), _operations(self._ops))
        return "\n".join(part for part in parts if part)

    def close(self) -> None:
        self._graphs.close()

    def _choose_backends(self, specs: Sequence[AttentionSpec]) -> list[AttentionBackend]:
        """Layers with equal specs share a backend, and so its plan of a step."""
        made = {spec: self.platform.attention(spec) for spec in dict.fromkeys(specs)}
        return [made[spec] for spec in specs]

    def _make_tables(self) -> None:
        """What remembers requests, where the platform wants it to be."""
        capabilities, device = self.platform.capabilities, self.platform.device
        host, pinned = capabilities.sampling == "host", capabilities.pinned_memory
        most = self.config.max_requests
        self._table = RequestTable(
            most,
            self.max_model_len,
            self.block_size,
            device,
            "cpu" if host else None,
            pinned=pinned,
        )
        self._sampler = Sampler(
            self.vocab_size,
            most,
            "cpu" if host else device,
            None if host else self._ops,
            pinned=pinned and not host,
        )
        if self._buckets is not None:
            self._static = StaticSteps(self._buckets, self._table, host_logits=host)

    def _allocate(self, num_blocks: int) -> None:
        if self._static is not None:
            self._static.spare_block = num_blocks
            num_blocks += 1
        self._layers = Layers(self._backends, [one.allocate(num_blocks) for one in self._backends])

    def _forward(self, inputs: StepInputs) -> Tensor:
        return self.model.forward(inputs.input_ids, inputs.positions, self._layers.attend(inputs))

    # A step

    def _compute(self, step: Arranged) -> Callable[[Indices], Tensor]:
        """Run the model; what gives the logits [M, V] of M rows of the step."""
        if self._static is not None:
            padding = self._static.padding(step)
            inputs = self._table.inputs(step, padding)
            hidden_TC = self._graphs.run(self._forward, inputs)
            project = self.model.logits
            return self._static.logits(self._graphs, project, hidden_TC, padding.shape)
        hidden_TC = self._graphs.run(self._forward, self._table.inputs(step))

        def logits(rows: Indices) -> Tensor:
            if len(rows) == step.num_tokens:
                return self._graphs.project_all(self.model.logits, hidden_TC)
            return self.model.logits(hidden_TC[self._table.to_device(rows)])

        return logits

    def _release(self, key: int) -> None:
        self._explained.discard(key)
        if (row := self._table.release(key)) is not None:
            self._sampler.release(row)

    def _sample(self, step: Arranged, logits: Callable[[Indices], Tensor]) -> Sampled | None:
        """Sample after every slice that ends its request's tokens; remember what came."""
        chosen = np.array([i for i, part in enumerate(step.slices) if part.samples], dtype=np.int64)
        if not chosen.size:
            return None
        rows, lengths = step.rows_N[chosen], step.stops_N[chosen]
        logits_MV = logits(step.query_start[chosen + 1] - 1)
        sampled = self._sampler.sample(logits_MV, rows, self._table.tokens_RL, lengths)
        tokens = self._agreed.tokens(sampled.tokens)
        if tokens is not sampled.tokens:
            sampled = replace(sampled, tokens=tokens)
        self._table.append(rows, lengths, sampled.tokens)
        return sampled

    def _prompt_logprobs(
        self, step: Arranged, logits: Callable[[Indices], Tensor]
    ) -> dict[int, list[Logprobs]]:
        """Of slices whose request asked for them, by their place in the step."""
        found: dict[int, list[Logprobs]] = {}
        if not self._explained:
            return found
        for i, part in enumerate(step.slices):
            admission = self._table.admissions[part.key]
            count = admission.params.prompt_logprobs
            stop = min(part.stop, admission.num_prompt - 1)
            if count is None or stop <= part.start:
                continue
            first = step.query_start[i]
            rows = np.arange(first, first + stop - part.start)
            following = admission.tokens[part.start + 1 : stop + 1]
            found[i] = prompt_logprobs(logits, rows, following, count)
        return found

    # Before the first request

    def _may_shrink(self, memory: MemoryProfiler) -> bool:
        """Whether a smaller cache may help where programs did not fit. Ranks would have to agree in
        the middle of their collectives, and the user's own number is no guess."""
        assert self.ledger is not None
        guessed = memory.kind == "compiled" and self.config.num_blocks is None
        return guessed and self.ledger.num_blocks > 1 and self.config.tensor_parallel == 1

    def _warm_up(self, *, may_shrink: bool) -> bool:
        """Allocate the cache and let the device prepare; False: it is too large for that.

        Raises:
            OutOfMemoryError: it does not fit, and may not shrink.
        """
        assert self.ledger is not None
        try:
            self._allocate(self.ledger.num_blocks)
            if self._static is None:
                self._graphs.warm_up(self._forward, self._warm_up_inputs)
            else:
                self._static.warm_up(self._graphs, self._forward, self.model.logits)
            self.platform.synchronize()  # or the first request would wait for what was only started
        except torch.OutOfMemoryError as error:
            if not may_shrink:
                raise
            log.warning("a cache of %d blocks is too large: %s", self.ledger.num_blocks, error)
            self._graphs.close()
            self._layers = Layers([], [])
            return False
        return True

    def _measure_step(self) -> int:
        """Bytes that the largest steps need beside weights and cache.

        Where a step of that size takes long, a small one is measured in its place, and multiplied:
        each token of it sees as much context as the last tokens of the large one.
        """
        memory = self.platform.memory()
        if memory.kind != "measured":
            return int(memory.snapshot().total * STATISTICS_SHARE)
        most, rows, peak = self.config.max_batch_tokens, self.config.max_requests, 0
        if not self.platform.capabilities.chunked_prefill:
            most = max(most, self.max_model_len)  # as the scheduler does: prompts come whole
        if self._buckets is not None:
            most = min(most, self._buckets.tokens[-1])
            rows = min(rows, self._buckets.requests[-1], self._buckets.decodes[-1])
        self._run_dummy([(0, 1)])  # what only the first step does is not counted
        for sizes in largest_steps(most, rows, self.max_model_len):
            tokens, whole = SAMPLE_TOKENS, sum(sizes)
            while True:
                small = smaller_step(sizes, tokens)
                measured = sum(stop - start for start, stop in small)
                needed, took_s = self._run_dummy(small)
                quick = took_s * SAMPLE_GROWTH <= MEASURE_S
                if measured == whole or not self._agreed.all(quick):
                    break
                tokens *= SAMPLE_GROWTH
            if measured < whole:
                needed = int(needed * whole / measured * MULTIPLIED)
            peak = max(peak, needed)
        return peak

    def _run_dummy(self, parts: Sequence[tuple[int, int]]) -> tuple[int, float]:
        """Bytes at the peak of a step that computes these start:stop of prompts, and seconds."""
        memory = self.platform.memory()
        memory.release_cached()
        batch = dummy_batch(parts, self.block_size)
        self._allocate(sum(len(part.blocks) for part in batch.slices))
        self.platform.synchronize()
        began = time.perf_counter()
        with memory.measure():
            self.execute(batch).result()
            self.platform.synchronize()
            took_s = time.perf_counter() - began
            peak = memory.snapshot().peak
        self.reset()
        memory.release_cached()
        kept = memory.snapshot().used  # a cache may take memory only when it is written
        del self._layers
        return max(0, peak - kept), took_s

    def _warm_up_inputs(
        self, num_requests: int, num_tokens: int, shape: Shape | None = None
    ) -> StepInputs:
        """A step of equal prompts, as the device sees it. No request is alive yet."""
        assert shape is None, "asked for by a platform that declares no static shapes"
        assert self.ledger is not None
        parts = [(0, num_tokens // num_requests)] * num_requests
        batch = dummy_batch(parts, self.block_size, self.ledger.num_blocks)
        for admission in batch.admitted:
            self._sampler.admit(self._table.admit(admission), admission)
        step = self._table.arrange(batch)
        self._table.update_blocks(step)
        inputs = self._table.inputs(step)
        self.reset()
        return inputs


def _collect(
    step: Arranged, choices: Sequence[Choice], prompts: dict[int, list[Logprobs]]
) -> StepOutput:
    """Bring everything into the batch's order."""
    tokens = iter(choices)
    outputs: list[SliceOutput] = [SliceOutput()] * len(step.slices)
    for i, part in enumerate(step.slices):
        prompt = tuple(prompts.get(i, ()))
        if not part.samples:
            outputs[step.order[i]] = SliceOutput(prompt_logprobs=prompt)
            continue
        token, logprobs, finite = next(tokens)
        outputs[step.order[i]] = SliceOutput(
            tokens=(token,),
            logprobs=(logprobs,) if logprobs else (),
            prompt_logprobs=prompt,
            error=None if finite else "the model's logits are not finite numbers",
        )
    return StepOutput(tuple(outputs))


def _operations(ops: OpTable) -> str:
    """Who brought the operations in use, and how often each was chosen."""
    by_source: dict[str, list[str]] = {}
    for (name, source), times in sorted(ops.chosen.items()):
        by_source.setdefault(source, []).append(f"{name} {times}")
    return "\n".join(f"operations from {one}: {', '.join(by_source[one])}" for one in by_source)
