"""A whole step lowers to one StableHLO program, which XLA runs with the same results.

On the device the vendor's backend of `torch.compile` lowers it; here torch.export and torchax do. A
step is what the platform has compiled: the model over its caches, then the projection of some rows
to logits, which it keeps as a second program. Tokens are chosen on the host.
"""

import re
from dataclasses import replace

import pytest
import torch
from host_neuron import HostNeuron
from neuron_on_cpu import host_spec
from torch.utils._pytree import tree_leaves

from engine.assemble import assemble
from engine.platform import Shape, StepInputs, StepMetadata
from engine.runner.layers import Layers
from engine.testing.checks import tiny_model
from engine.testing.checks.subject import OnlyThis
from engine_neuron import installed, kernels
from engine_neuron.attention import PAD, NkiAttention, TorchAttention

jax = pytest.importorskip("jax")
pytest.importorskip("torchax", reason="torchax, which lowers programs, is not installed")

from torchax import default_env  # noqa: E402
from torchax.export import exported_program_to_jax  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # torch's own

SMALL = {
    "device": "neuron_on_cpu",
    "max_requests": 4,
    "max_batch_tokens": 96,
    "max_model_len": 256,
    "num_blocks": 24,
    "dtype": "float32",
}
SIZE = 32  # tokens a block
NUM_CACHES = 4  # keys and values of two layers
SHAPES = (Shape(4, 4, 8, True), Shape(96, 1, 8))
#: In torch's own operations: on the device each is a call of a kernel.
REFERENCES = kernels.Kernels(kernels.token_reference, kernels.context_reference)


class KeepsSources(HostNeuron):
    """`asked` is what its compiler was asked to make programs of."""

    def __init__(self, config, rank=0):
        super().__init__(config, rank)
        make, self.asked = self.maker.make, []

        def kept(compute):
            self.asked.append(compute)
            return make(compute)

        self.maker.make = kept


class WholeStep(torch.nn.Module):
    """(caches, the step's tensors, rows) -> logits of the rows; caches change in place."""

    def __init__(self, runner, step, project):
        super().__init__()
        self._runner, self._step, self._project = runner, step, project

    def forward(self, caches, tensors, rows):
        layers = self._runner._layers
        self._runner._layers = Layers(layers.backends, list(caches))
        try:
            return self._project(self._step(*tensors), rows)
        finally:
            self._runner._layers = layers


class Program:
    """The step of one shape: exported, lowered, and what it is computed on."""

    def __init__(self, engine, shape):
        inputs, rows = some_step(shape), torch.arange(shape.requests)
        step, project = asked_for(engine, inputs, rows)
        self.module = WholeStep(engine.loop.runner, step, project)
        self.arguments = (some_caches(engine.loop.runner), tensors_of(inputs), rows)
        self.exported = torch.export.export(self.module, self.arguments, strict=False)
        self.states, function = exported_program_to_jax(self.exported)
        leaves = default_env().t2j_copy(tree_leaves(self.arguments))
        self.caches, self.others = leaves[:NUM_CACHES], leaves[NUM_CACHES:]

        def step_of(caches, others, states):
            return function(states, (*caches, *others))

        jitted = jax.jit(step_of, donate_argnums=0, keep_unused=True)
        self.traced_by_jax = jitted.trace(self.caches, self.others, self.states)
        lowered = self.traced_by_jax.lower()
        self.text = lowered.as_text()
        self.compiled = lowered.compile()

    def by_torch(self):
        """Logits, and the caches afterwards."""
        caches, tensors, rows = self.arguments
        after = tuple((keys.clone(), values.clone()) for keys, values in caches)
        return self.module(after, tensors, rows), tree_leaves(after)

    def by_xla(self):
        """The same. What is donated cannot be used again, so copies are."""
        *after, logits = self.compiled([x.copy() for x in self.caches], self.others, self.states)
        logits, *after = (torch.tensor(jax.device_get(x)) for x in (logits, *after))
        return logits, after


@pytest.fixture(scope="module", params=[NkiAttention, TorchAttention], ids=["kernels", "torch"])
def engine(request, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENGINE_PROGRAM_CACHE", str(tmp_path_factory.mktemp("programs")))
        if request.param is NkiAttention:
            patch.setattr(installed, "missing_kernels", lambda: None)
            patch.setattr(kernels, "load", lambda device: REFERENCES)
        model = str(tiny_model.make(tmp_path_factory.mktemp("model")))
        spec = replace(host_spec(), create=KeepsSources)
        made = assemble({"model": model, **SMALL}, OnlyThis(spec))
    assert {type(one) for one in made.loop.runner._layers.backends} == {request.param}
    yield made
    made.close()


@pytest.fixture(scope="module", params=SHAPES, ids=str)
def program(engine, request):
    with torch.no_grad():
        return Program(engine, request.param)


def test_it_is_one_program_of_static_shapes_without_calls_out_of_it(program):
    assert not program.exported.range_constraints
    assert program.text.count("module @") == 1
    assert program.text.count("func.func public @") == 1
    types = re.findall(r"tensor<([^>]*)>", program.text)
    assert len(types) > 500, "these are not the types"
    assert not [one for one in types if "?" in one]
    assert not {one for one in types if one.endswith("f64")}, "the device has no such numbers"
    operations = set(re.findall(r"\bstablehlo\.(\w+)", program.text))
    assert {"dot_general", "gather", "scatter", "exponential"} <= operations
    assert not operations & {"custom_call", "infeed", "outfeed", "send", "recv", "rng"}
    assert not program.traced_by_jax.jaxpr.effects


def test_each_cache_becomes_its_own_next_state_in_place(program):
    [main] = re.findall(r"func\.func public @main\((.*?)\) ->", program.text)
    donated = re.findall(r"%arg(\d+): [^%]*tf\.aliasing_output = (\d+)", main)
    assert donated == [(str(i), str(i)) for i in range(NUM_CACHES)]
    sizes = [keys.nbytes + values.nbytes for keys, values in program.arguments[0]]
    assert program.compiled.memory_analysis().alias_size_in_bytes == sum(sizes)


def test_xla_computes_the_logits_and_caches_that_torch_does(program):
    wanted, caches = program.by_torch()
    found, after = program.by_xla()
    real = program.arguments[1][3] > 0  # what is computed for padding may be NaN
    assert wanted[real].std() > 0.1, "logits that say nothing"
    assert torch.allclose(found[real], wanted[real], atol=2e-5)
    before = tree_leaves(program.arguments[0])
    for was, right, got in zip(before, caches, after, strict=True):
        assert not torch.equal(was, right), "nothing was stored"
        assert torch.allclose(got, right, atol=2e-5, equal_nan=True)


def some_step(shape):
    """Requests in the middle of their answers, one of them padding; or the second part of a
    prompt, with padding behind it."""
    tables = torch.full((shape.requests, shape.blocks), PAD, dtype=torch.int32)
    if shape.decode:
        lengths = torch.tensor([1, 33, 200, 0], dtype=torch.int32)
        counts = [1, 1, 1, 0]
    else:
        lengths = torch.tensor([45 + 70], dtype=torch.int32)
        counts = [70]
    free = iter(torch.randperm(SMALL["num_blocks"], generator=torch.Generator().manual_seed(1)))
    slots = torch.full((shape.tokens,), PAD)
    positions = torch.zeros(shape.tokens, dtype=torch.int64)
    row = 0
    for table, length, count in zip(tables, lengths.tolist(), counts, strict=True):
        for i in range(-(-length // SIZE)):
            table[i] = next(free)
        for position in range(length - count, length):
            positions[row] = position
            slots[row] = int(table[position // SIZE]) * SIZE + position % SIZE
            row += 1
    starts = torch.tensor([0, *torch.tensor(counts).cumsum(0).tolist()], dtype=torch.int32)
    ids = torch.arange(shape.tokens) % 90 + 3
    longest = shape.blocks * SIZE
    step = StepMetadata(
        starts,
        lengths,
        tables,
        slots,
        1 if shape.decode else shape.tokens,
        longest,
        shape.requests if shape.decode else 0,
    )
    return StepInputs(ids, positions, step)


def some_caches(runner):
    random = torch.Generator().manual_seed(2)
    return tuple(
        tuple(torch.randn(part.shape, generator=random) for part in pair)
        for pair in runner._layers.caches
    )


def tensors_of(inputs):
    step = inputs.metadata
    return (
        inputs.input_ids,
        inputs.positions,
        step.query_start,
        step.lengths,
        step.block_table,
        step.slots,
    )


def asked_for(engine, inputs, rows):
    """What the platform has compiled for such a step, and for the projection of its rows."""
    runner, asked = engine.loop.runner, engine.platform.asked
    known = len(asked)
    runner._graphs.close()  # forgets its programs, and so asks again
    with torch.inference_mode():
        hidden = runner._graphs.run(runner._forward, inputs)
        runner._graphs.project(runner.model.logits, hidden, rows)
    step, project = asked[known:]
    return step, project
