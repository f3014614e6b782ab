"""Compiled programs: all are there before the first request, and padding changes nothing.

Platforms without static shapes are asked one thing: whether they compile anything in a step.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from engine.assemble import Engine
from engine.errors import UnsupportedError
from engine.platform import Capabilities, Platform, Shape, ShapeBuckets, StepLimits
from engine.testing.checks.case import Case, all_of, needs_static_shapes
from engine.testing.checks.driving import Driver, ask, assert_all_returned, error_of
from engine.testing.checks.interposed import interpose
from engine.testing.checks.runner import OUTPUT, SCENES, TOLERANCES, Bench
from engine.testing.checks.subject import Subject
from engine.testing.checks.watched import Announced, Watch

#: (tokens a step, requests, tokens of one request) that settings may ask for.
LIMITS = ((16, 1, 64), (100, 3, 333), (256, 16, 1024), (2048, 64, 4096))


def declares_them_or_has_none(subject: Subject) -> None:
    """`buckets` answers exactly where `static_shapes` is declared."""
    found, declared = _buckets(subject.platform, LIMITS[0]), subject.capabilities.static_shapes
    assert (found is not None) == declared, (
        f"static_shapes is {declared}, and buckets() gives {found!r}"
    )


def holds_every_step(tokens: int, requests: int, length: int) -> Callable[[Subject], None]:
    def check(subject: Subject) -> None:
        """Any step within the limits has a program, and none has a negative cost."""
        size = subject.capabilities.block_sizes[0]
        buckets = _buckets(subject.platform, (tokens, requests, length))
        assert isinstance(buckets, ShapeBuckets), f"buckets() gives {buckets!r}"
        shapes = buckets.shapes()
        assert shapes, "buckets without a shape"
        assert len(set(shapes)) == len(shapes), "a shape is named twice"
        assert all(buckets.cost(one) > 0 for one in shapes), "a step that costs nothing"
        longest = -(-length // size)
        for blocks in {1, (longest + 1) // 2, longest}:
            for rows in {1, (requests + 1) // 2, requests}:
                _assert_held(buckets, Shape(rows, rows, blocks, True))
                if subject.capabilities.chunked_prefill:
                    _assert_held(buckets, Shape(min(tokens, rows + 1), min(rows, tokens), blocks))
            _assert_held(buckets, Shape(tokens, 1, blocks))

    return check


def _assert_held(buckets: ShapeBuckets, asked: Shape) -> None:
    most = buckets.decodes if asked.decode else buckets.requests
    requests = min(asked.requests, most[-1])  # the scheduler keeps to what there is
    tokens = requests if asked.decode else min(asked.tokens, buckets.tokens[-1])
    found = buckets.fit(tokens, requests, asked.blocks, decode=asked.decode)
    assert found is not None, f"no shape holds a step of {asked}"
    assert found in buckets.shapes(), f"{found} is not among the shapes"


def refuses_what_it_has_no_program_for(subject: Subject) -> None:
    """A step larger than all buckets: an error that names the shape, or a program that is made."""
    watch = Watch()
    watched = subject.like(interpose(subject.spec, watch.parts))
    settings = {"max_batch_tokens": 64, "max_requests": 4, "num_blocks": 64, "overlap": False}
    try:
        with watched.engine(dtype=subject.capabilities.dtypes[0], **settings) as engine:
            assert watch.buckets is not None
            assert watch.graphs is not None
            missing, before = watch.buckets.missing, watch.graphs.num_compiled
            refusal = _oversized_step(engine, watch.buckets)
            if missing == "error":
                assert refusal, f"a step of {watch.buckets.tokens[-1] + 1} tokens was computed"
                assert str(watch.buckets.tokens[-1] + 1) in refusal, (
                    f"the error does not name the shape: {refusal}"
                )
            else:
                made = watch.graphs.num_compiled - before
                assert made > 0, "a program was made in a step, but num_compiled did not rise"
    finally:
        watched.close()


def _oversized_step(engine: Engine, buckets: ShapeBuckets) -> str:
    """Have the runner compute more tokens than the largest bucket holds; why it refused."""
    from engine.runner.rehearsal import dummy_batch

    size, most = engine.facts.block_size, engine.facts.max_model_len
    count = buckets.tokens[-1] + 1
    held = min(engine.facts.num_blocks, buckets.blocks[-1]) * size
    assert count <= min(held, most), f"{count} tokens do not fit a request: the case is wrong"
    try:
        engine.loop.runner.execute(dummy_batch([(0, count)], size)).result()
    except UnsupportedError as error:
        return str(error)
    finally:
        engine.loop.runner.reset()
    return ""


class WatchedBench(Bench):
    """Nothing may be compiled while one of its engines works."""

    def __init__(self, subject: Subject, dtype: str, watch: Watch) -> None:
        super().__init__(subject, dtype)
        self._watch = watch

    @contextmanager
    def engine(self, **settings: Any) -> Iterator[Engine]:
        watch = self._watch
        watch.loaded = False
        watch.warmed.clear()
        watch.met.clear()
        with super().engine(**settings) as engine:
            if watch.buckets is not None:
                engine.loop.runner = Announced(engine.loop.runner, watch)
            watch.loaded = True
            before = _compiled(watch)
            yield engine
            after = _compiled(watch)
        assert after == before, (
            f"{max(new - old for new, old in zip(after, before, strict=True))} programs were"
            " compiled after warm-up"
        )


def _compiled(watch: Watch) -> tuple[int, int]:
    """Programs as the platform counts them, and as torch's own compiler does, if it is in use."""
    own = 0 if watch.graphs is None else watch.graphs.num_compiled
    dynamo = sys.modules.get("torch._dynamo.utils")
    return own, dynamo.counters["stats"]["unique_graphs"] if dynamo else 0


def scene_compiles_nothing(
    scene: Callable[[Bench], float], *, poison: bool
) -> Callable[[Subject], float]:
    def check(subject: Subject) -> float:
        """A scene of the level "runner": right answers, without a new program.

        `poison`: every block of the cache, that of padding too, holds NaN at first, and so does
        what was computed for padding.
        """
        watch = Watch(poison=poison)
        watched = subject.like(interpose(subject.spec, watch.parts))
        try:
            error = scene(WatchedBench(watched, subject.capabilities.dtypes[0], watch))
        finally:
            watched.close()
        allowed = TOLERANCES[subject.capabilities.dtypes[0]]
        assert error <= allowed, f"error {error:.3g} is over the tolerance {allowed:.3g}"
        return error

    return check


def fills_up_to_every_size(bench: Bench) -> float:
    """From one request to many, one more at a time: every decode bucket and border is met."""
    most = 9
    with bench.engine(max_requests=most) as engine:
        driver = Driver(engine.loop)
        for number in range(most):
            length = 1 + (7 * number) % (2 * bench.block_size)
            driver.submit([ask(str(number), bench.prompt(length), OUTPUT)])
            driver.step(1)
        answers = driver.finish()
        assert_all_returned(engine.loop)
    return error_of(bench.subject.oracle, answers.values(), OUTPUT)


def _buckets(platform: Platform, limits: tuple[int, int, int]) -> ShapeBuckets | None:
    tokens, requests, length = limits
    size = platform.capabilities.block_sizes[0]
    whole = 0 if platform.capabilities.chunked_prefill else length
    return platform.buckets(
        StepLimits(
            max_tokens=max(tokens, whole),
            max_requests=requests,
            max_model_len=length,
            block_size=size,
        )
    )


def _no_skip(capabilities: Capabilities) -> str | None:
    return None


def _case(
    name: str,
    check: Callable[[Subject], float | None],
    *,
    skip: Callable[[Capabilities], str | None] = needs_static_shapes,
    tolerance: float | None = None,
) -> Case:
    return Case(
        id=f"shapes/{name}", level="shapes", check=check, skip=skip, tolerance=tolerance, wide=True
    )


_LOOSEST = max(TOLERANCES.values())

CASES = (
    _case("declares-them-or-has-none", declares_them_or_has_none, skip=_no_skip),
    *(_case("holds-" + "-".join(map(str, one)), holds_every_step(*one)) for one in LIMITS),
    _case("refuses-what-it-has-no-program-for", refuses_what_it_has_no_program_for),
    *(
        _case(
            f"compiles-nothing/{name}",
            scene_compiles_nothing(scene, poison=False),
            skip=skip,
            tolerance=_LOOSEST,
        )
        for name, scene, skip in (*SCENES, ("fills-up", fills_up_to_every_size, _no_skip))
    ),
    *(
        _case(
            f"reads-no-padding/{name}",
            scene_compiles_nothing(scene, poison=True),
            skip=all_of(needs_static_shapes, skip),
            tolerance=_LOOSEST,
        )
        for name, scene, skip in (*SCENES, ("fills-up", fills_up_to_every_size, _no_skip))
        if not name.startswith("goes-on")
    ),
)
