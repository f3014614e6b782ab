"""The whole engine on chips that the CPU simulates."""

from dataclasses import replace

import jax
import pytest
import torch

import engine_tpu
from engine import LLM, SamplingParams
from engine.assemble import assemble
from engine.errors import UnsupportedError
from engine.testing.checks.driving import ask, run
from engine.testing.checks.subject import OnlyThis
from engine_tpu.jax_platform import SimulatedPlatform

SPEC = {spec.name: spec for spec in engine_tpu.engine_platforms()}["tpu_simulated"]
SMALL = {
    "max_requests": 4,
    "max_batch_tokens": 32,
    "max_model_len": 256,
    "num_blocks": 24,
    "dtype": "float32",
}
PROMPTS = [tuple(range(3, 3 + n % 80)) * (1 + n // 80) for n in (1, 9, 40, 79 + 80)]
LAYERS = 2
#: Chips on which few programs are enough.
FEW = {2: {"max_requests": 1, "max_batch_tokens": 16}}
#: Two a layer, after attention and after the feed-forward part, and one of the embedding.
ALL_REDUCES = 2 * LAYERS + 1


@pytest.fixture(scope="module")
def engines(model):
    """Makes the engine of so many chips, once."""
    made = {}

    def engine(chips=1):
        if chips not in made:
            device = f"tpu_simulated:chips={chips}"
            settings = {"model": model, "device": device, **SMALL, **FEW.get(chips, {})}
            made[chips] = assemble(settings, OnlyThis(SPEC))
        return made[chips]

    yield engine
    for one in made.values():
        one.close()


@pytest.fixture(scope="module")
def right(model):
    """What the CPU platform answers."""
    params = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
    with LLM(model=model, device="cpu", **SMALL) as llm:
        return [list(one.outputs[0].token_ids) for one in llm.generate(PROMPTS, params)]


def answers(engine, count=6, **params):
    asked = [ask(str(i), prompt, count) for i, prompt in enumerate(PROMPTS)]
    asked = [replace(one, params=replace(one.params, **params)) for one in asked]
    found = run(engine.loop, *asked)
    return [found[str(i), 0].tokens for i in range(len(PROMPTS))]


def programs(engine):
    """Of steps and of projections, by their keys."""
    return engine.loop.runner._graphs._programs


@pytest.mark.parametrize("chips", [1, 2, 4])
def test_tokens_are_those_of_the_cpu_platform(engines, right, chips):
    assert answers(engines(chips)) == right


def test_seeds_draw_the_tokens_that_they_draw_on_the_cpu_platform(engines, model):
    filters = {"temperature": 0.8, "top_p": 0.95, "top_k": 40, "seed": 7}
    params = SamplingParams(max_tokens=6, ignore_eos=True, **filters)
    with LLM(model=model, device="cpu", **SMALL) as llm:
        wanted = [list(one.outputs[0].token_ids) for one in llm.generate(PROMPTS, params)]
    found = answers(engines(), **filters)
    assert found == wanted
    assert found != answers(engines()), "nothing was drawn"


def test_every_shape_is_one_program_and_no_step_makes_another(engines):
    engine = engines()
    shapes = engine.platform.buckets(engine.platform._limits).shapes()
    projections = {(one.tokens, one.requests) for one in shapes}
    copying = 1  # for every layer's cache
    warmed = engine.loop.stats.num_compiled
    assert len(programs(engine)) == len(shapes) + len(projections)
    choosing = 2 * len({one.requests for one in shapes})  # argmax and sample
    assert warmed == len(shapes) + len(projections) + choosing + copying
    answers(engine)
    run(engine.loop, ask("a", PROMPTS[2], 40, n=2))
    assert engine.loop.stats.num_compiled == warmed


def test_caches_are_donated_and_take_the_old_ones_memory(engines):
    engine = engines()
    caches = engine.loop.runner._layers.caches
    before = [one.array for one in caches]
    places = [array.unsafe_buffer_pointer() for array in before]
    answers(engine)
    assert all(array.is_deleted() for array in before)
    assert [one.array.unsafe_buffer_pointer() for one in caches] == places
    held = sum(one.array.nbytes for one in caches)
    steps = [one for one in programs(engine).values() if one.pages]
    assert len(steps) >= 4
    for program in steps:
        assert program.compiled.memory_analysis().alias_size_in_bytes == held


def test_weights_are_arguments_and_lie_on_the_chip_once(engines):
    engine = engines()
    steps = [one for one in programs(engine).values() if one.pages]
    model = sum(one.nbytes for one in steps[0].weights)
    for program in steps:
        assert [id(one) for one in program.weights] == [id(one) for one in steps[0].weights]
        arguments = program.compiled.memory_analysis().argument_size_in_bytes
        assert arguments >= model + sum(one.array.nbytes for one in program.pages)
    total = engine.loop.runner.model.num_bytes
    output = 96 * 64 * 4  # the output layer is in the projections alone
    assert total - output <= model < total


def test_weights_are_divided_over_the_chips(engines):
    """Every matrix of the tiny model can be; its norms are whole on each chip."""
    engine = engines(2)
    weights = next(one.weights for one in programs(engine).values() if one.pages)
    for array in weights:
        [shape] = {shard.data.shape for shard in array.addressable_shards}
        whole = array.size == torch.Size(shape).numel()
        assert len(array.addressable_shards) == 2
        assert whole == (array.ndim < 2), array.shape


def test_only_sums_are_exchanged_within_a_step(engines):
    for program in programs(engines(2)).values():
        text = program.compiled.as_text()
        counts = {
            name: text.count(f" {name}(") + text.count(f" {name}-start(")
            for name in ("all-reduce", "all-gather", "all-to-all", "collective-permute")
        }
        if program.pages:
            assert counts == {
                "all-reduce": ALL_REDUCES,
                "all-gather": 0,
                "all-to-all": 0,
                "collective-permute": 0,
            }
        else:  # logits, which every chip has a part of
            assert (counts["all-reduce"], counts["all-gather"]) == (0, 1)


def test_continuations_of_one_prompt_go_on_in_copies_of_its_blocks(engines, right):
    found = run(engines(4).loop, ask("a", PROMPTS[2], 6, n=2))
    assert [found["a", i].tokens for i in range(2)] == [right[2]] * 2


def test_memory_counts_what_lies_on_the_first_chip(engines):
    engine = engines(2)
    ledger = engine.loop.runner.ledger
    caches = engine.loop.runner._layers.caches
    each = sum(one.array.addressable_shards[0].data.nbytes for one in caches)
    assert each * 2 == sum(one.array.nbytes for one in caches)
    assert engine.platform.memory().snapshot().used >= each
    assert ledger.total == 16 * 2**30


def test_a_second_start_compiles_nothing(engines, model, program_cache):
    engines()
    events: list[str] = []
    jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
    again = assemble({"model": model, "device": "tpu_simulated", **SMALL}, OnlyThis(SPEC))
    assert events.count("/jax/compilation_cache/cache_hits") >= len(programs(again))
    assert events.count("/jax/compilation_cache/cache_misses") == 0
    again.close()
    assert list((program_cache / "tpu_simulated").glob("*/*-cache")), "nothing was kept"


def test_more_chips_than_there_are_is_an_error_that_says_so(model):
    with pytest.raises(UnsupportedError, match="more chips than jax has here: 4, cpu"):
        assemble({"model": model, "device": "tpu_simulated:chips=8", **SMALL}, OnlyThis(SPEC))


def test_heads_that_cannot_be_divided_are_an_error_that_says_so(model):
    with pytest.raises(UnsupportedError, match="4 heads over 2 cannot be divided evenly over 3"):
        assemble({"model": model, "device": "tpu_simulated:chips=3", **SMALL}, OnlyThis(SPEC))


def test_what_the_compiler_finds_too_large_is_out_of_memory(engines, monkeypatch):
    platform: SimulatedPlatform = engines().platform

    def exhausted(*arguments, **options):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory in hbm\nmore")

    monkeypatch.setattr(jax.stages.Lowered, "compile", exhausted)
    with pytest.raises(torch.OutOfMemoryError, match="RESOURCE_EXHAUSTED: Ran out of memory"):
        platform.programs.compile(lambda x: x + 1, (1.0,))
