"""The whole engine on the platform's code: a program for every shape, and nothing beside them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from host_neuron import HostNeuron, TracedNeuron
from neuron_on_cpu import host_spec
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from engine import LLM, SamplingParams
from engine.assemble import assemble
from engine.platform import Shape, StepLimits
from engine.testing.checks.driving import ask, run
from engine.testing.checks.subject import OnlyThis
from engine_neuron import installed
from engine_neuron.attention import PAD, NkiAttention, TorchAttention
from engine_neuron.blocks import SIZES
from engine_neuron.platform import CACHE_VARIABLES, Buckets

SMALL = {
    "device": "neuron_on_cpu",
    "max_requests": 4,
    "max_batch_tokens": 96,
    "max_model_len": 512,
    "num_blocks": 64,
    "dtype": "float32",
}
VOCABULARY = 96
PROMPTS = [tuple(range(3, 3 + n % 80)) * (1 + n // 80) for n in (1, 9, 40, 70, 79 + 80)]
KINDS = pytest.mark.parametrize("kind", [NkiAttention, TorchAttention], ids=["kernels", "torch"])


class Starts:
    """Makes engines of which each layer's attention is of one kind, and closes them."""

    def __init__(self, model, folder):
        self._model, self.folder = model, folder
        self._made = []

    def __call__(self, kind, platform, **settings):
        spec = replace(host_spec(), create=platform)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ENGINE_PROGRAM_CACHE", str(self.folder))
            if kind is NkiAttention:
                patch.setattr(installed, "missing_kernels", lambda: None)
            engine = assemble({"model": self._model, **SMALL, **settings}, OnlyThis(spec))
        assert {type(one) for one in engine.loop.runner._layers.backends} == {kind}
        self._made.append(engine)
        return engine

    def close(self):
        for engine in self._made:
            engine.close()


@pytest.fixture(scope="module")
def start(model, tmp_path_factory):
    made = Starts(model, tmp_path_factory.mktemp("programs"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def traced(start):
    """One engine of each kind whose programs Dynamo traces: each takes ten seconds to start."""
    known = {}

    def engine(kind):
        if kind not in known:
            known[kind] = start(kind, TracedNeuron)
        return known[kind]

    return engine


def answers(engine, prompts=PROMPTS, count=6):
    found = run(engine.loop, *(ask(str(i), prompt, count) for i, prompt in enumerate(prompts)))
    return [found[str(i), 0].tokens for i in range(len(prompts))]


@KINDS
def test_each_shape_is_one_graph_and_no_step_makes_another(traced, kind):
    engine = traced(kind)
    shapes = engine.platform.make_buckets(engine.platform._limits).shapes()
    projections = {(one.tokens, one.requests) for one in shapes}
    copies_and_clearing = len(SIZES) + 1
    warmed = engine.loop.stats.num_compiled
    assert warmed == len(engine.platform.graphs_made)
    assert warmed == len(shapes) + len(projections) + copies_and_clearing
    answers(engine)
    assert engine.loop.stats.num_compiled == warmed


@KINDS
def test_no_graph_has_a_symbolic_dimension(traced, kind):
    for graph in traced(kind).platform.graphs_made:
        values = [node.meta["example_value"] for node in graph.graph.nodes if node.op != "output"]
        tensors = [one for one in tree_leaves(values) if isinstance(one, torch.Tensor)]
        assert tensors
        assert {type(size) for one in tensors for size in one.shape} <= {int}


@KINDS
def test_each_layer_of_a_step_is_one_kernel_where_the_kernels_serve(traced, kind):
    num_layers = 2 if kind is NkiAttention else 0
    shapes = traced(kind).platform.make_buckets(traced(kind).platform._limits).shapes()
    called = [
        [str(node.target) for node in graph.graph.nodes]
        for graph in traced(kind).platform.graphs_made
    ]
    for name, decode in (("attention_tkg", True), ("attention_cte", False)):
        counts = [one.count(f"engine_neuron.{name}.default") for one in called]
        graphs = sum(shape.decode == decode for shape in shapes)
        assert sorted(counts)[-graphs:] == [num_layers] * graphs
        assert sum(counts) == graphs * num_layers


@KINDS
def test_tokens_are_those_of_the_cpu_platform(traced, kind, model):
    params = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
    small = {name: value for name, value in SMALL.items() if name != "device"}
    with LLM(model=model, device="cpu", **small) as llm:
        right = [list(one.outputs[0].token_ids) for one in llm.generate(PROMPTS, params)]
    assert answers(traced(kind)) == right


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
    engine = start(TorchAttention, Watched)
    outside = engine.platform.outside = Outside(engine)
    with outside:
        # Two continuations of one prompt: the second goes on in copies of the first one's blocks.
        found = run(engine.loop, ask("a", PROMPTS[2], 40, n=2), ask("b", PROMPTS[1], 3))
        assert len(outside.places) > 2 * len(engine.loop.runner._layers.caches)
        assert outside.found == []
        engine.loop.runner._layers.caches[0][0].sum()
    assert outside.found == ["aten.sum.default"], "the watch sees nothing"
    assert sorted(len(one.tokens) for one in found.values()) == [3, 40, 40]


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
def test_what_is_padding_is_stored_in_nobodys_block(start, kind):
    engine = start(kind, HostNeuron)
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


def test_artefacts_are_kept_where_the_programs_of_these_settings_are(start, monkeypatch):
    import os

    for variable in CACHE_VARIABLES:
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)
    start(TorchAttention, HostNeuron)
    [folder] = {os.environ[variable] for variable in CACHE_VARIABLES}
    assert Path(folder).parent == start.folder / "neuron_on_cpu"
    assert (Path(folder) / "programs.json").exists()
