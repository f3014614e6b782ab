"""No step waits for the device: the platform's whole step, the core's part of it included, runs on
tensors that hold nothing (torch's device "meta"), for the tables of a real chip. Whoever asks what
is in one fails, wherever that is. Kernels are launched in name only.

What a copy to the device comes from is told too: anything but pinned memory, sent without waiting,
would stop the host until all earlier work is done.
"""

from types import SimpleNamespace

import pytest
import torch
from host_gpu import HostGpu
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.interpreter import InterpretedFunction

from engine import models
from engine.batch import Admission, Batch, Slice
from engine.config import EngineConfig
from engine.models.facts import read_facts
from engine.ops import fill
from engine.params import SamplingParams
from engine.platform import MemoryProfiler, MemorySnapshot, OpTable, StepLimits
from engine.runner import ModelRunner
from engine.testing.checks import tiny_model
from engine_triton.architecture import Architecture
from engine_triton.capture import CapturedRunner
from engine_triton.device import Recording
from engine_triton.linear.layers import DenseLinear
from engine_triton.platform import TritonPlatform
from engine_triton.pointwise.norm import RMSNorm
from engine_triton.sampling.argmax import Argmax

COPIES = (torch.ops.aten.to, torch.ops.aten._to_copy, torch.ops.aten.copy_)
LIMITS = StepLimits(max_tokens=64, max_requests=4, max_model_len=64, block_size=16)


class MetaGpu(HostGpu):
    name = "meta"

    def to_host(self, x):
        assert x.is_meta
        return lambda: x

    def capture(self, work):
        return Recording(lambda: None, work())


class Totals(MemoryProfiler):
    """No step is measured: nothing takes memory."""

    kind = "statistics"

    def snapshot(self):
        return MemorySnapshot(1 << 30, 1 << 30, 0, 0)

    def measure(self):
        raise AssertionError("it only has totals")


class OnMeta(TritonPlatform):
    name = kind = "meta"

    def open(self, index):
        return MetaGpu()

    def examine(self):
        return Architecture.named("sm_90")

    def memory(self):
        return Totals()


class Staged(TorchDispatchMode):
    """Refuses copies to the device that the host would wait for."""

    def __init__(self):
        super().__init__()
        self.pinned = {}  # by address, and kept: no other tensor can be where one of these was
        self.num_copies = 0

    def pin(self, x):
        copy = x.clone()
        self.pinned[copy.untyped_storage().data_ptr()] = copy
        return copy

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        named = [one.name for one in function._schema.arguments]
        given = dict(zip(named, args, strict=False)) | (kwargs or {})
        source = given.get("src", given.get("self"))
        sent = function.overloadpacket in COPIES and source.device.type == "cpu"
        if sent and result.is_meta:
            self.num_copies += 1
            assert given.get("non_blocking"), "a copy to the device waits for it"
            assert source.untyped_storage().data_ptr() in self.pinned, "it is not pinned"
        return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_model.make(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture
def staged(monkeypatch):
    mode = Staged()
    monkeypatch.setattr(Tensor, "pin_memory", lambda x: mode.pin(x))
    monkeypatch.setattr(InterpretedFunction, "run", lambda kernel, *args, **options: None)
    return mode


@pytest.fixture
def start(folder, staged):
    """What makes a runner whose programs are "captured"; then `execute` is looked at."""

    def make(quantization=None):
        config = EngineConfig(
            model=str(folder),
            max_requests=LIMITS.max_requests,
            max_batch_tokens=LIMITS.max_tokens,
            num_blocks=32,
            quantization=quantization,
        )
        platform, facts, table = OnMeta(config), read_facts(config), OpTable()
        fill(table)
        platform.ops(table)
        assert platform.buckets(LIMITS) is None

        def load():
            return models.load(
                facts,
                config=config,
                dtype="bfloat16",
                kv_dtype="bfloat16",
                block_size=LIMITS.block_size,
                device="meta",
                ops=table,
                communicator=platform.communicator((0,)),
                show_progress=False,
            )

        runner = ModelRunner(
            config,
            platform,
            load,
            ops=table,
            vocab_size=facts.vocab_size,
            block_size=LIMITS.block_size,
            max_model_len=LIMITS.max_model_len,
        )
        runner.load()
        assert isinstance(runner._graphs, CapturedRunner)
        assert {name for name, one in table.chosen if one == "reference"} <= REFERENCES
        return SimpleNamespace(step=lambda batch: _watched(runner, batch, staged), runner=runner)

    return make


#: Operations that this package leaves to the core's reference.
REFERENCES = {"embedding"}
GREEDY = SamplingParams(temperature=0.0)
DRAWN = SamplingParams(
    temperature=0.8,
    top_k=5,
    top_p=0.9,
    min_p=0.1,
    repetition_penalty=1.2,
    frequency_penalty=0.5,
    logprobs=2,
    logit_bias={3: 1.0},
    allowed_token_ids=list(range(20)),
    bad_token_ids=((1, 2),),
)


def _watched(runner, batch, staged):
    with staged:
        before = staged.num_copies
        pending = runner.execute(batch)
        assert staged.num_copies > before
    return pending


def prompts(*lengths, params=(GREEDY, DRAWN)):
    """A step of whole prompts, in blocks of their own."""
    admitted, slices = [], []
    for key, length in enumerate(lengths):
        tokens = tuple(range(3, 3 + length))
        chosen = params[key % len(params)]
        admitted.append(Admission(key, tokens, length, chosen, seed=key, stop_ids=()))
        slices.append(Slice(key, 0, length, True, (2 * key, 2 * key + 1), 0))
    return Batch(admitted=tuple(admitted), slices=tuple(slices))


def decodes(*lengths):
    slices = [Slice(key, length, length + 1, True) for key, length in enumerate(lengths)]
    return Batch(slices=tuple(slices), copies=((0, 20),))


@pytest.mark.parametrize("quantization", [None, "fp8", "int4"])
def test_steps_of_prompts_decodes_and_both_wait_for_nothing(start, quantization):
    engine = start(quantization)
    engine.step(prompts(5, 17, 1))
    engine.step(decodes(5, 17, 1))
    engine.step(decodes(6, 18))
    late = Admission(3, tuple(range(3, 23)), 20, DRAWN, seed=1, stop_ids=())
    mixed = (Slice(0, 7, 8, True), Slice(3, 0, 12, False, (8, 9), 0))
    engine.step(Batch(released=(1,), admitted=(late,), slices=mixed))
    assert engine.runner.num_compiled == 3  # of 1, 2 and 4 requests


def spoilt(monkeypatch, kind, wait):
    """Whatever such a layer gives is looked at by the host first."""
    call = kind.__call__

    def looked_at(self, *args):
        result = call(self, *args)
        wait(result[0] if isinstance(result, tuple) else result)
        return result

    monkeypatch.setattr(kind, "__call__", looked_at)


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: x.tolist(),
        lambda x: bool(x.any()),
        lambda x: x.cpu(),
        lambda x: x.to("cpu", non_blocking=True),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.numpy(),
        lambda x: torch.equal(x, x),
    ],
)
def test_a_wait_that_is_planted_is_found(start, monkeypatch, wait):
    engine = start()
    spoilt(monkeypatch, Argmax, wait)
    with pytest.raises((RuntimeError, NotImplementedError, TypeError)):
        engine.step(prompts(5))


@pytest.mark.parametrize("kind", [DenseLinear, RMSNorm])
def test_it_is_found_in_every_kind_of_layer(start, monkeypatch, kind):
    engine = start()
    spoilt(monkeypatch, kind, lambda x: x.sum().item())
    with pytest.raises(RuntimeError, match="meta"):
        engine.step(prompts(5))


@pytest.mark.parametrize(
    ("send", "why"),
    [
        (lambda x: x.to("meta"), "waits for it"),
        (lambda x: x.pin_memory().to("meta"), "waits for it"),
        (lambda x: x.to("meta", non_blocking=True), "not pinned"),
    ],
)
def test_a_copy_that_stops_the_host_is_found(start, monkeypatch, send, why):
    engine = start()
    spoilt(monkeypatch, Argmax, lambda x: send(torch.zeros(3)))
    with pytest.raises(AssertionError, match=why):
        engine.step(prompts(5))
