"""The platform as a whole: its names, its programs, and a model that runs on it."""

import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import gaudi_on_cpu
import pytest
import shared_programs
import torch

import engine_cpu
import engine_gaudi
from engine.assemble import assemble
from engine.compiled import ProgramMaker
from engine.config import EngineConfig
from engine.errors import ConfigError, UnsupportedError
from engine.platform import AttentionSpec, Shape, StepLimits
from engine.testing.checks import Subject, tiny_model
from engine.testing.checks.driving import ask, error_of, run
from engine.testing.checks.shapes import LIMITS, holds_every_step
from engine.testing.checks.subject import OnlyThis
from engine_gaudi.platform import GaudiPlatform

[ON_CPU] = gaudi_on_cpu.engine_platforms()
SMALL = {
    "max_requests": 2,
    "max_batch_tokens": 128,
    "max_model_len": 1024,
    "dtype": "float32",
}
#: The last ones take several steps.
PROMPTS = [tuple(3 + 7 * i % 90 for i in range(n)) for n in (1, 9, 130, 300)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny_model.make(tmp_path_factory.mktemp("tiny")))


def as_on_the_device(config, rank=0):
    """With all its programs, and each its own."""
    platform = ON_CPU.create(config, rank)
    platform.maker = ProgramMaker(platform.dynamo_backend)
    platform.make_buckets = partial(GaudiPlatform.make_buckets, platform)
    return platform


def start(model, spec):
    blocks = {"num_blocks": 2048 // spec.create(EngineConfig(), 0).capabilities.block_sizes[0]}
    return assemble({"model": model, "device": spec.name, **SMALL, **blocks}, OnlyThis(spec))


def answers(engine, count=8):
    found = run(engine.loop, *(ask(str(i), prompt, count) for i, prompt in enumerate(PROMPTS)))
    return {key: tuple(one.tokens) for key, one in found.items()}, found


def test_each_bucket_is_one_graph_and_no_request_makes_another(model):
    engine = start(model, replace(ON_CPU, create=as_on_the_device))
    limits = StepLimits(max_tokens=128, max_requests=2, max_model_len=1024, block_size=128)
    shapes = engine.platform.make_buckets(limits).shapes()
    projections = {(one.tokens, one.requests) for one in shapes}
    assert engine.platform.maker.num_compiled == len(shapes) + len(projections) == 6 + 3
    tokens, found = answers(engine)
    assert engine.loop.stats.num_compiled == engine.platform.maker.num_compiled == 6 + 3
    assert error_of(Subject(ON_CPU, Path(model)).oracle, found.values(), 8) < 1e-4
    engine.close()
    [cpu] = engine_cpu.engine_platforms()
    other = start(model, cpu)
    assert answers(other)[0] == tokens
    other.close()


def test_programs_that_engines_share_compute_with_the_weights_of_each(model, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    shared_programs.forget()
    traced = []
    for folder in (model, str(tiny_model.make(other, seed=1))):
        engine = start(folder, ON_CPU)
        _, found = answers(engine)
        assert error_of(Subject(ON_CPU, Path(folder)).oracle, found.values(), 8) < 1e-4
        traced.append(engine.platform.maker.num_compiled)
        engine.close()
    assert traced[0] > 0
    assert traced[1] == 0


def test_the_names_of_device_compiler_and_collectives_are_the_bridge_s(monkeypatch):
    platform = GaudiPlatform(EngineConfig(device="gaudi"), rank=3)
    assert platform.device == "hpu:0"  # of its own process
    assert platform.dynamo_backend == "hpu_backend"
    assert platform.distributed_backend == "hccl"
    assert "HLS_MODULE_ID" not in os.environ  # the bridge takes the one that LOCAL_RANK counts
    [spec] = engine_gaudi.engine_platforms()
    assert spec.name == platform.name == "gaudi"


@pytest.mark.parametrize(("visible", "opened"), [(None, "3"), ("4,5,6,7", "7")])
def test_indices_choose_among_the_modules_that_may_be_used(monkeypatch, visible, opened):
    if visible:
        monkeypatch.setenv("HABANA_VISIBLE_MODULES", visible)
    GaudiPlatform(EngineConfig(device="gaudi:1,3"), rank=1)
    assert os.environ["HLS_MODULE_ID"] == opened


def test_the_bridge_s_collectives_are_loaded_for_several_ranks_once_the_module_is_chosen(vendor):
    hccl = "habana_frameworks.torch.distributed.hccl"
    GaudiPlatform(EngineConfig(device="gaudi:1,3"))
    assert hccl not in sys.modules
    GaudiPlatform(EngineConfig(device="gaudi:1,3", tensor_parallel=2), rank=1)
    assert sys.modules[hccl].module == "3"


def test_an_index_beyond_the_visible_modules_is_refused(monkeypatch):
    monkeypatch.setenv("HABANA_VISIBLE_MODULES", "4,5")
    with pytest.raises(ConfigError, match=r"gaudi:2 counts from 0 .* names 2: 4,5"):
        GaudiPlatform(EngineConfig(device="gaudi:2"))


def test_recipes_are_kept_beside_the_programs_unless_the_user_says_where(tmp_path, monkeypatch):
    platform = GaudiPlatform(EngineConfig(device="gaudi"))
    platform.use_cache(tmp_path)
    assert os.environ["PT_HPU_RECIPE_CACHE_CONFIG"] == f"{tmp_path},false,16384,false"
    monkeypatch.setenv("PT_HPU_RECIPE_CACHE_CONFIG", "/mine,false,1,false")
    platform.use_cache(tmp_path)
    assert os.environ["PT_HPU_RECIPE_CACHE_CONFIG"] == "/mine,false,1,false"


def test_tokens_are_read_once_their_copy_is_done_whatever_was_started_since(monkeypatch):
    class Event:
        done: ClassVar = []

        def record(self):
            self.done.append("recorded")

        def synchronize(self):
            self.done.append("waited")

    monkeypatch.setattr(torch, "get_device_module", lambda device: SimpleNamespace(Event=Event))
    wait = GaudiPlatform(EngineConfig(device="gaudi")).to_host(torch.tensor([3, 1]))
    assert Event.done == ["recorded"]
    assert wait().tolist() == [3, 1]
    assert Event.done == ["recorded", "waited"]


def buckets(**limits):
    platform = GaudiPlatform(EngineConfig(device="gaudi"))
    return platform.make_buckets(StepLimits(block_size=128, **limits))


def test_prompts_have_no_program_over_a_table_that_is_too_short_for_them():
    found = buckets(max_tokens=2048, max_requests=64, max_model_len=4096)
    prompts = {(one.tokens, one.blocks) for one in found.shapes() if not one.decode}
    assert (512, 4) in prompts
    assert (1024, 4) not in prompts
    assert (2048, 32) in prompts
    assert {one.requests for one in found.shapes() if not one.decode} == {1}
    assert found.fit(513, 1, 5, decode=False) == Shape(1024, 1, 8)


def test_the_number_of_programs_of_a_large_server_can_be_waited_for():
    found = buckets(max_tokens=8192, max_requests=256, max_model_len=32768).shapes()
    assert len(found) <= 110
    assert sum(one.decode for one in found) == 9 * 7


@pytest.mark.parametrize("limits", LIMITS)
def test_every_step_within_the_limits_has_a_program(limits, tmp_path):
    [spec] = engine_gaudi.engine_platforms()
    subject = Subject(replace(spec, create=GaudiPlatform), tmp_path)
    holds_every_step(*limits)(subject)
    subject.close()


def test_a_step_never_has_more_tokens_than_a_request_may_have():
    assert buckets(max_tokens=8192, max_requests=2, max_model_len=300).tokens[-1] == 384


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"dtype": "float16"}, "float16 is none of bfloat16, float32"),
        ({"kv_dtype": "fp8_e5m2"}, "fp8_e5m2 is none of"),
        ({"num_heads": 7}, "7 heads do not share 2 key/value heads evenly"),
    ],
)
def test_what_is_not_computed_is_refused_with_the_reason(wrong, why):
    good = {"num_heads": 8, "num_kv_heads": 2, "head_dim": 64, "block_size": 128, "scale": 0.125}
    spec = AttentionSpec(**{**good, "dtype": "bfloat16", "kv_dtype": "bfloat16", **wrong})
    with pytest.raises(UnsupportedError, match=why):
        GaudiPlatform(EngineConfig(device="gaudi")).attention(spec)
