"""The core with static shapes over a compiler that counts, on CPU tensors."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
from static_platform import StaticPlatform, static_spec

from engine.assemble import assemble
from engine.compiled import ProgramCache
from engine.compiled.programs import FOLDER, MANIFEST
from engine.platform import Shape, ShapeBuckets
from engine.request import Finish
from engine.testing.checks import Subject, tiny_model
from engine.testing.checks.driving import ask, error_of, expecting_failed_steps, run
from engine.testing.checks.subject import OnlyThis

SMALL = {
    "device": "static",
    "max_requests": 6,
    "max_batch_tokens": 96,
    "max_model_len": 128,
    "num_blocks": 64,
    "dtype": "float32",
}
PROMPTS = [tuple(range(3, 3 + n)) for n in (1, 9, 40, 70)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny_model.make(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER, str(tmp_path))
    return tmp_path


def start(model, spec=None, **settings):
    return assemble({"model": model, **SMALL, **settings}, OnlyThis(spec or static_spec()))


class Narrow(ShapeBuckets):
    """Its programs end at 32 tokens of context, which its sizes do not tell."""

    def shapes(self):
        return (Shape(32, 6, 2), Shape(6, 6, 2, decode=True))


def narrow(missing):
    class Other(StaticPlatform):
        def make_buckets(self, limits):
            sizes = {"tokens": (32,), "requests": (6,), "decodes": (6,), "blocks": (8,)}
            return Narrow(**sizes, missing=missing)

    return replace(static_spec(), create=Other)


def test_each_shape_is_one_graph_and_no_step_makes_another(model):
    engine = start(model)
    shapes = engine.platform.make_buckets(engine.platform._limits).shapes()
    made = list(engine.platform.compiled)
    projections = {(one.tokens, one.requests) for one in shapes}
    warmed = engine.loop.stats.num_compiled
    assert warmed == len(made)
    assert warmed >= len(shapes) + len(projections)
    asked = [ask(str(i), prompt, 6) for i, prompt in enumerate(PROMPTS)]
    found = run(engine.loop, *asked)
    subject = Subject(static_spec(), Path(model))
    assert error_of(subject.oracle, found.values(), 6) < 1e-4
    assert engine.loop.stats.num_compiled == warmed
    engine.close()


def test_a_step_without_a_program_is_an_error_that_names_its_shape(model):
    engine = start(model, narrow("error"))
    with expecting_failed_steps():
        found = run(engine.loop, ask("a", PROMPTS[2], 4))
    [answer] = found.values()
    assert answer.finishes == [Finish.ERROR]
    assert "step of this shape: 8 tokens of 1 requests over 3 blocks" in answer.errors[0]
    assert "there are: decode of 6 requests over 2 blocks, 32 tokens of 6" in answer.errors[0]
    right = run(engine.loop, ask("b", PROMPTS[1], 4))
    assert [one.finishes for one in right.values()] == [[Finish.LENGTH]]
    engine.close()


def test_a_platform_may_rather_compile_what_is_missing_and_count_it(model):
    engine = start(model, narrow("compile"))
    before = engine.loop.stats.num_compiled
    found = run(engine.loop, ask("a", PROMPTS[2], 4))
    assert [one.finishes for one in found.values()] == [[Finish.LENGTH]]
    assert engine.loop.stats.num_compiled > before
    engine.close()


def test_what_programs_took_is_told_to_the_next_start(model, cache, caplog):
    start(model).close()
    [manifest] = cache.rglob(MANIFEST)
    seconds = json.loads(manifest.read_text())
    assert len(seconds) == 4
    assert all(took > 0 for took in seconds.values())
    manifest.write_text(json.dumps(dict.fromkeys(seconds, 100.0)))
    with caplog.at_level(logging.INFO, "engine.compiled.runner"):
        start(model).close()
    said = [record.message for record in caplog.records if "program" in record.message]
    assert len(said) == 4
    assert "about 300 s left" in said[0]


@pytest.mark.parametrize(
    "settings", [{"dtype": "bfloat16"}, {"max_model_len": 64}, {"block_size": 8}]
)
def test_other_settings_have_programs_of_their_own(model, cache, settings):
    start(model).close()
    start(model, **settings).close()
    assert len(list(cache.rglob(MANIFEST))) == 2


def test_a_manifest_that_cannot_be_read_is_no_manifest(tmp_path):
    one = ProgramCache("npu", "facts", root=tmp_path)
    with one.making(Shape(1, 1, 1)):
        pass
    one.save()
    assert list(ProgramCache("npu", "facts", root=tmp_path).seconds) == [str(Shape(1, 1, 1))]
    assert ProgramCache("npu", "other", root=tmp_path).seconds == {}
    (one.folder / MANIFEST).write_text('{"half": ')
    assert ProgramCache("npu", "facts", root=tmp_path).seconds == {}
