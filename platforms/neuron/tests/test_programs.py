"""The whole engine on the platform's code: a program for every shape, and nothing beside them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from neuron_on_cpu import HostNeuron, host_spec
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from engine import LLM, SamplingParams
from engine.assemble import assemble
from engine.platform import Shape, StepInputs, StepLimits, StepMetadata
from engine.testing.checks.driving import ask, run
from engine.testing.checks.subject import OnlyThis
from engine_neuron.attention import PAD, NkiAttention, TorchAttention
from engine_neuron.blocks import SIZES
from engine_neuron.platform import CACHE_VARIABLES, Buckets

SMALL = {
    "device": "neuron",
    "max_requests": 6,
    "max_batch_tokens": 96,
    "max_model_len": 512,
    "num_blocks": 64,
    "dtype": "float32",
}
VOCABULARY = 96
PROMPTS = [tuple(range(3, 3 + n % 80)) * (1 + n // 80) for n in (1, 9, 40, 70, 79 + 80)]
KINDS = pytest.mark.usefixtures("kind")


@pytest.fixture(params=[NkiAttention, TorchAttention], ids=["kernels", "torch"])
def kind(request):
    """Of attention."""
    return request.param


@pytest.fixture
def start(model, monkeypatch, request):
    """Makes an engine whose attention is of the kind that the test is about."""
    kind = request.getfixturevalue("kind") if "kind" in request.fixturenames else TorchAttention
    if kind is NkiAttention:
        request.getfixturevalue("kernels_here")
    made = []

    def make(platform=HostNeuron, **settings):
        spec = replace(host_spec(), create=platform)
        made.append(assemble({"model": model, **SMALL, **settings}, OnlyThis(spec)))
        assert {type(one) for one in made[-1].loop.runner._layers.backends} == {kind}
        return made[-1]

    yield make
    for engine in made:
        engine.close()


def answers(engine, prompts=PROMPTS, count=6):
    found = run(engine.loop, *(ask(str(i), prompt, count) for i, prompt in enumerate(prompts)))
    return [found[str(i), 0].tokens for i in range(len(prompts))]


@KINDS
def test_each_shape_is_one_graph_and_no_step_makes_another(start):
    engine = start()
    shapes = engine.platform.make_buckets(engine.platform._limits).shapes()
    projections = {(one.tokens, one.requests) for one in shapes}
    copies_and_clearing = len(SIZES) + 1
    warmed = engine.loop.stats.num_compiled
    assert warmed == len(engine.platform.graphs_made)
    assert warmed == len(shapes) + len(projections) + copies_and_clearing
    answers(engine)
    assert engine.loop.stats.num_compiled == warmed


@KINDS
def test_tokens_are_those_of_the_cpu_platform(start, model):
    params = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
    small = {name: value for name, value in SMALL.items() if name != "device"}
    with LLM(model=model, device="cpu", **small) as llm:
        right = [list(one.outputs[0].token_ids) for one in llm.generate(PROMPTS, params)]
    assert answers(start()) == right


class Outside(TorchDispatchMode):
    """What is computed beside programs, of caches and of what programs returned; but logits are
    fetched from the device, and here the host has them at once."""

    def __init__(self, engine):
        super().__init__()
        self.places = {x.data_ptr() for x in tree_leaves(engine.loop.runner._layers.caches)}
        self.found = []
        self.kept = []

    def know(self, result):
        if isinstance(result, torch.Tensor) and result.shape[-1] != VOCABULARY:
            self.places.add(result.data_ptr())
            self.kept.append(result)  # or its place would become another tensor's

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        for x in tree_leaves((args, kwargs)):
            if isinstance(x, torch.Tensor) and x.data_ptr() in self.places:
                self.found.append(str(function))
        return function(*args, **(kwargs or {}))


class Watched(HostNeuron):
    """Tells `outside` what its programs returned, and lets it look at nothing within them."""

    outside = None

    def __init__(self, config, rank=0):
        super().__init__(config, rank)
        make = self.maker.make

        def watched(compute):
            program = make(compute)

            def run(*tensors):
                with _disable_current_modes():
                    result = program(*tensors)
                if self.outside is not None:
                    self.outside.know(result)
                return result

            return run

        self.maker.make = watched


def test_no_step_computes_on_the_device_beside_its_programs(start):
    engine = start(Watched)
    outside = engine.platform.outside = Outside(engine)
    with outside:
        # Two continuations of one prompt: the second goes on in copies of the first one's blocks.
        found = run(engine.loop, ask("a", PROMPTS[2], 40, n=2), ask("b", PROMPTS[1], 3))
        assert len(outside.places) > 2 * len(engine.loop.runner._layers.caches)
        assert outside.found == []
        engine.loop.runner._layers.caches[0][0].sum()
    assert outside.found == ["aten.sum.default"], "the watch sees nothing"
    assert sorted(len(one.tokens) for one in found.values()) == [3, 40, 40]


class Step(torch.nn.Module):
    """A step of the engine as a module: the caches are its buffers."""

    def __init__(self, engine, like: StepMetadata) -> None:
        super().__init__()
        self._runner = engine.loop.runner
        self._like = like
        for i, (keys, values) in enumerate(self._runner._layers.caches):
            self.register_buffer(f"keys_{i}", keys.clone())
            self.register_buffer(f"values_{i}", values.clone())

    def forward(self, ids, positions, query_start, lengths, block_table, slots):
        like, backends = self._like, self._runner._layers.backends
        step = StepMetadata(
            query_start,
            lengths,
            block_table,
            slots,
            like.max_query,
            like.max_length,
            like.num_decodes,
        )
        plan = backends[0].plan(step)

        def attend(layer, q, k, v):
            cache = (getattr(self, f"keys_{layer}"), getattr(self, f"values_{layer}"))
            return backends[layer].forward(q, k, v, cache, plan)[0]

        return self._runner.model.forward(ids, positions, attend)


@KINDS
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # torch's own
@pytest.mark.parametrize("shape", [Shape(4, 4, 8, True), Shape(96, 1, 16)], ids=str)
def test_a_step_exports_as_one_program_without_a_symbolic_dimension(start, shape):
    engine = start()
    with torch.no_grad():
        inputs: StepInputs = engine.loop.runner._static.make_inputs(shape)
        step = inputs.metadata
        tensors = (step.query_start, step.lengths, step.block_table, step.slots)
        arguments = (inputs.input_ids, inputs.positions, *tensors)
        module = Step(engine, step)
        exported = torch.export.export(module, arguments, strict=True).run_decompositions({})
        found = exported.module()(*arguments)
    with torch.inference_mode():
        wanted = engine.loop.runner._forward(inputs)
    assert not exported.range_constraints
    values = [node.meta["val"] for node in exported.graph.nodes if "val" in node.meta]
    sizes = [size for value in tree_leaves(values) for size in getattr(value, "shape", ())]
    assert len(sizes) > 100
    assert {type(size) for size in sizes} == {int}
    changed = set(exported.graph_signature.buffers_to_mutate.values())
    assert changed == {name for name, _ in module.named_buffers()}, "caches change in place"
    assert torch.allclose(found, wanted)


@pytest.mark.parametrize("limits", [(16, 1, 64), (2048, 64, 8192), (8192, 256, 131072)])
def test_the_number_of_programs_stays_small(limits):
    tokens, requests, length = limits
    buckets = Buckets.of(
        StepLimits(max_tokens=tokens, max_requests=requests, max_model_len=length, block_size=32)
    )
    assert len(buckets.shapes()) <= 72
    assert all(blocks * 32 % 256 == 0 for blocks in buckets.blocks), "as the kernel reads them"
    assert buckets.requests == (1,)
    assert (buckets.pad_block, buckets.pad_slot) == (PAD, PAD)


@KINDS
def test_what_is_padding_is_stored_in_nobodys_block(start):
    engine = start()
    runner = engine.loop.runner
    for shape in (Shape(4, 4, 8, True), Shape(96, 1, 16)):
        inputs = runner._static.make_inputs(shape)
        assert inputs.metadata.slots.tolist() == [PAD] * shape.tokens
        assert (inputs.metadata.block_table == PAD).all()
        with torch.inference_mode():
            runner._graphs.run(runner._forward, inputs)
    for keys, values in runner._layers.caches:
        assert not keys[:-1].any()
        assert not values[:-1].any()
        assert keys[-1].any(), "nothing was computed: the case is wrong"


def test_artefacts_are_kept_where_the_programs_of_these_settings_are(start, tmp_path, monkeypatch):
    import os

    for variable in CACHE_VARIABLES:
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)
    start()
    [folder] = {os.environ[variable] for variable in CACHE_VARIABLES}
    assert Path(folder).parent == tmp_path / "neuron"
    assert (Path(folder) / "programs.json").exists()
