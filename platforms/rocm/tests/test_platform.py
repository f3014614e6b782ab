"""The platform as a whole: what it refuses, and a model that runs on its code on the host."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from recorded import Unwaiting
from triton_on_cpu import spec

import engine_cpu
import engine_rocm
from engine.assemble import assemble
from engine.config import EngineConfig
from engine.errors import UnsupportedError
from engine.params import SamplingParams
from engine.platform import StepLimits
from engine.request import Submission
from engine.testing.checks.driving import run
from engine.testing.checks.subject import OnlyThis
from engine_rocm import platform as rocm_platform
from engine_rocm.platform import RocmPlatform
from engine_triton import collectives
from engine_triton.architecture import Architecture

#: Programs of 1, 2 and 3 requests; the last prompt takes three steps, beside others' tokens.
SMALL = {
    "dtype": "float32",
    "max_requests": 3,
    "max_batch_tokens": 24,
    "max_model_len": 64,
    "num_blocks": 12,
    "block_size": 16,
}
PROMPTS = [tuple(3 + 7 * i % 90 for i in range(n)) for n in (1, 9, 50)]

GREEDY = {"temperature": 0.0}
DRAWN = {"temperature": 1.5, "top_k": 20, "top_p": 0.95, "min_p": 0.01, "seed": 3}


def answers(engine, settings):
    params = SamplingParams(max_tokens=5, ignore_eos=True, logprobs=2, **settings)
    asked = [Submission(str(i), prompt, params) for i, prompt in enumerate(PROMPTS)]
    return {key: one.tokens for key, one in run(engine.loop, *asked).items()}


def watched(engine, watch):
    """Starting a step may not wait for the device; only reading its tokens may."""
    execute = engine.loop.runner.execute

    def start(batch):
        with watch.watching():
            return execute(batch)

    engine.loop.runner.execute = start


def test_tokens_are_those_of_the_cpu_platform_with_programs_and_overlapped_steps(model):
    ours = spec("rocm_on_cpu")
    engine = assemble(
        {"model": str(model), "device": ours.name, "overlap": True, **SMALL}, OnlyThis(ours)
    )
    watch = Unwaiting()
    watched(engine, watch)
    found, stats = answers(engine, GREEDY), engine.loop.stats
    drawn = answers(engine, DRAWN)
    played = [one.num_replays for one in engine.platform.gpu.recordings]
    engine.close()
    assert len(played) == stats.num_compiled == 3  # of 3, 2 and 1 requests; none in a step
    assert sum(played) >= 4
    assert watch.num_kernels > 0
    [cpu] = engine_cpu.engine_platforms()
    engine = assemble({"model": str(model), "device": "cpu", **SMALL}, OnlyThis(cpu))
    assert answers(engine, GREEDY) == found
    assert answers(engine, DRAWN) == drawn != found
    engine.close()


@pytest.fixture
def gpus(monkeypatch):
    """As if torch saw so many GPUs."""

    def see(count, facts=None):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: facts)

    return see


def test_a_machine_without_a_gpu_is_told_where_to_look(gpus):
    gpus(0)
    with pytest.raises(UnsupportedError, match=r"sees no GPU; `engine platforms` says why"):
        RocmPlatform(EngineConfig(device="rocm"))


def test_an_index_beyond_the_gpus_is_refused_with_those_there_are(gpus):
    gpus(2)
    with pytest.raises(
        UnsupportedError, match=r"no GPU rocm:5: .* 0 to 1, and see HIP_VISIBLE_DEVICES"
    ):
        RocmPlatform(EngineConfig(device="rocm:5"))


def test_a_rank_without_an_index_of_its_own_is_refused(gpus):
    gpus(8)
    with pytest.raises(UnsupportedError, match=r"rank 1 has no GPU: --device rocm:0 names 1"):
        RocmPlatform(EngineConfig(device="rocm:0"), rank=1)


def test_a_gpu_that_the_kernels_are_not_made_for_is_refused_by_its_name(gpus, monkeypatch):
    gpus(1, SimpleNamespace(name="AMD Radeon VII", gcnArchName="gfx906:sramecc+:xnack-"))

    def current():
        return Architecture.named("gfx906")

    monkeypatch.setattr(Architecture, "current", current)
    with pytest.raises(UnsupportedError, match=r"AMD Radeon VII is gfx906.*no launch parameters"):
        RocmPlatform(EngineConfig(device="rocm"))


def test_a_torch_without_the_library_of_collectives_is_told(gpus, monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: False)
    platform = spec("rocm_on_cpu").create(EngineConfig(device="rocm"), 0)
    with pytest.raises(UnsupportedError, match="built without RCCL"):
        RocmPlatform.register_collectives(platform)


def test_ranks_talk_through_the_library_that_torch_has(monkeypatch):
    library, entered = SimpleNamespace(Options=object()), []
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    monkeypatch.setattr(torch.distributed, "ProcessGroupNCCL", library, raising=False)
    monkeypatch.setattr(collectives, "register", lambda *given: entered.append(given))
    named = SimpleNamespace(collectives=RocmPlatform.collectives, kind=RocmPlatform.kind)
    RocmPlatform.register_collectives(named)
    assert entered == [("engine_rccl", "cuda", library, library.Options)]


def test_a_gpu_is_opened_by_its_index_and_looked_up_in_the_tables(gpus, monkeypatch):
    gpus(
        2,
        SimpleNamespace(
            name="AMD Instinct MI300X", pci_domain_id=0, pci_bus_id=0xC1, pci_device_id=0
        ),
    )
    monkeypatch.setattr(Architecture, "current", lambda: Architecture.named("gfx942"))
    asked = []
    monkeypatch.setattr(rocm_platform, "own_memory", lambda place: asked.append(place))
    opened = RocmPlatform(EngineConfig(device="rocm:1,0", kv_dtype="fp8_e4m3"), rank=0)
    assert opened.device == "cuda:1"
    assert opened.architecture.name == "gfx942"
    assert asked == ["0000:c1:00.0"]
    found = opened.capabilities
    assert found.dtypes[0] == "bfloat16"
    assert set(found.quantization) == {"fp8", "int8", "int4"}
    assert "fp8_e4m3" in found.kv_dtypes
    assert found.pinned_memory
    assert found.overlap
    assert RocmPlatform(EngineConfig(device="rocm:1,0"), rank=1).device == "cuda:0"
    opened.close()


def test_the_core_pads_no_steps_and_the_runner_knows_the_limits():
    platform = spec("rocm_on_cpu").create(EngineConfig(device="rocm"), 0)
    limits = StepLimits(max_tokens=64, max_requests=6, max_model_len=100, block_size=16)
    assert platform.buckets(limits) is None
    assert platform.graphs().sizes == (1, 2, 4, 6)
    platform.close()


def test_importing_and_probing_bring_neither_torch_nor_triton():
    code = (
        "import sys, engine_rocm as p; [s] = p.engine_platforms(); s.probe(); s.defaults();"
        " s.environment(0); s.profile('rocm');"
        " assert not set(sys.modules) & {'torch', 'triton', 'numpy', 'engine_cuda'}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_it_goes_before_the_cpu():
    [ours], [cpu] = engine_rocm.engine_platforms(), engine_cpu.engine_platforms()
    assert ours.priority > cpu.priority
    assert (ours.name, ours.api) == ("rocm", (1, 4))
