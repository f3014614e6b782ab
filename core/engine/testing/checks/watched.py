"""Watches the programs of a platform: which shapes were warmed up, and which steps really had."""

from dataclasses import dataclass, field

from torch import Tensor

from engine.batch import Batch
from engine.platform import (
    Forward,
    GraphRunner,
    KVCache,
    Pending,
    Runner,
    Shape,
    ShapeBuckets,
    StepInputs,
    StepMetadata,
)
from engine.platform.graph import MakeInputs
from engine.testing.checks.driving import FaultyRunner
from engine.testing.checks.interposed import AttentionAround, GraphsAround, Parts
from engine.testing.checks.paged import filled


@dataclass(slots=True)
class Watch:
    """What one engine did. `poison`: what nobody may read is made NaN."""

    poison: bool = False
    buckets: ShapeBuckets | None = None
    graphs: GraphRunner | None = None
    warmed: set[Shape] = field(default_factory=set)
    met: dict[Shape, tuple[int, int, int]] = field(default_factory=dict)  # see `_constants`
    num_tokens: int = 0  # of the step that runs, without padding
    loaded: bool = False  # warming up is over

    @property
    def parts(self) -> Parts:
        return Parts(
            attention=lambda part: _Poisoned(part) if self.poison else part,
            graphs=self._watch,
            buckets=self._note,
        )

    def see(self, inputs: StepInputs) -> None:
        """A step that runs.

        Raises:
            AssertionError: it is of no shape that was warmed up, or differs from others of its
                shape in something that a program has built in.
        """
        shape = shape_of(inputs)
        constants = _constants(inputs.metadata)
        known = self.met.setdefault(shape, constants)
        assert constants == known, (
            f"steps of the shape {shape} differ: max_query, max_length and num_decodes are"
            f" {constants}, and {known}"
        )
        if not self.loaded:
            self.warmed.add(shape)
            return
        declared = self.buckets is not None and shape in self.buckets.shapes()
        assert declared, f"a step ran in a shape that is not declared: {shape}"
        assert shape in self.warmed, f"a step ran in a shape that was not warmed up: {shape}"

    def _watch(self, part: GraphRunner) -> GraphRunner:
        self.graphs = part
        return _Watched(part, self)

    def _note(self, part: ShapeBuckets | None) -> ShapeBuckets | None:
        self.buckets = part
        return part


def shape_of(inputs: StepInputs) -> Shape:
    requests, blocks = inputs.metadata.block_table.shape
    return Shape(len(inputs.input_ids), requests, blocks, inputs.metadata.num_decodes > 0)


def _constants(step: StepMetadata) -> tuple[int, int, int]:
    return step.max_query, step.max_length, step.num_decodes


class _Watched(GraphsAround):
    def __init__(self, inner: GraphRunner, watch: Watch) -> None:
        super().__init__(inner)
        self._watch = watch

    def warm_up(self, forward: Forward, make_inputs: MakeInputs) -> None:
        def seen(num_requests: int, num_tokens: int, shape: Shape | None = None) -> StepInputs:
            inputs = make_inputs(num_requests, num_tokens, shape)
            if self._watch.buckets is not None:
                self._watch.see(inputs)
            return inputs

        # Not `forward`: a platform may know it again, and its programs with it.
        self.inner.warm_up(forward, seen)

    def run(self, forward: Forward, inputs: StepInputs) -> Tensor:
        watch = self._watch
        if watch.loaded and watch.buckets is not None:
            watch.see(inputs)
        out_TC = self.inner.run(forward, inputs)
        if not (watch.loaded and watch.poison):
            return out_TC
        spoilt_TC = out_TC.clone()
        spoilt_TC[watch.num_tokens :] = float("nan")
        return spoilt_TC


class Announced(FaultyRunner):
    """Tells the watch how many tokens a step has, before it runs."""

    def __init__(self, inner: Runner, watch: Watch) -> None:
        super().__init__(inner, set(), late=False)
        self._watch = watch

    def execute(self, batch: Batch) -> Pending:
        self._watch.num_tokens = batch.num_tokens
        return super().execute(batch)


class _Poisoned(AttentionAround):
    """Fresh caches hold NaN, as memory that others used may: also where padding goes."""

    def allocate(self, num_blocks: int) -> KVCache:
        cache = self.inner.allocate(num_blocks)
        return filled(self.inner, cache, range(num_blocks), float("nan"))
