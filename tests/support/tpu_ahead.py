"""Steps of models that are not here, compiled for chips that are not here.

libtpu's compiler needs no TPU; weights are zeros. What is compiled is what an engine on chips of
this kind would run: the core's decoder, traced by the platform, with the platform's own kernels.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax.experimental import topologies

from engine.compiled import CompiledRunner
from engine.facts import ModelFacts
from engine.layers import Site
from engine.models.load_request import LoadRequest
from engine.models.loading import build, declared
from engine.models.outlining import _Shapes
from engine.ops import fill
from engine.platform import (
    OpTable,
    Shape,
    ShapeBuckets,
    SoloCommunicator,
    StepInputs,
    StepMetadata,
)
from engine_tpu import ops
from engine_tpu.arrays import to_jax
from engine_tpu.attention import KernelAttention
from engine_tpu.placement import WHOLE, Placement
from engine_tpu.programs import Program, Programs

#: The smallest slice that libtpu describes, and a chip's memory.
GIB = 2**30
KINDS = {
    "v5e": ("v5e:2x2", 16 * GIB),
    "v5p": ("v5p:2x2x1", 95 * GIB),
    "v6e": ("v6e:2x2", 32 * GIB),
    "tpu7x": ("tpu7x:2x2x1", 96 * GIB),
}

LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_hidden_layers": 2,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
SMALL = LLAMA_8B | {
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "num_hidden_layers": 1,
    "vocab_size": 1024,
}


class AheadPrograms(Programs):
    """Weights and caches are zeros of the host; compiled is for the place where they would be."""

    def __init__(self, placement):
        super().__init__(placement)
        self._there = {}  # by the id of what is on the host

    def make(self, compute):
        return AheadProgram(self, compute)

    def zeros(self, shape, dtype, sharding):
        array = jax.device_put(np.zeros(shape, jnp.dtype(dtype)), jax.devices("cpu")[0])
        self._there[id(array)] = jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
        return array

    def place(self, weight, spec, start=0, stop=None):
        key = (id(weight), spec, start, stop)
        if key not in self._weights:
            part = weight[start:stop] if weight.dim() else weight
            dtype = str(part.dtype).removeprefix("torch.")
            with jax.ensure_compile_time_eval():
                array = self.zeros(tuple(part.shape), dtype, self.placement.sharding(spec))
            self._weights[key] = weight, array
        return self._weights[key][1]

    def compile(self, function, arguments, **jit):
        there = jax.tree.map(lambda x: self._there.get(id(x), x), arguments)
        if isinstance(jit["out_shardings"], list):  # of a result and the caches
            jit["out_shardings"][1:] = [one.sharding for one in there[1]]
        return super().compile(function, there, **jit)


class AheadProgram(Program):
    """Gives what was compiled instead of running it."""

    def __call__(self, *inputs):
        whole = self._programs.placement.sharding(WHOLE)
        arrays = (to_jax(x) for x in inputs)
        self.compile([jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole) for x in arrays])
        return self.compiled


class Ahead:
    """One model on so many chips of a kind."""

    def __init__(self, folder: Path, config: dict, kind: str, chips: int, *, num_blocks=512):
        (folder / "config.json").write_text(json.dumps(config))
        devices = topologies.get_topology_desc(platform="tpu", topology_name=KINDS[kind][0]).devices
        self.programs = AheadPrograms(Placement.over(devices[:chips]))
        self.hbm = KINDS[kind][1]
        request = LoadRequest(
            facts=ModelFacts(
                name="made up",
                path=str(folder),
                architecture=config["architectures"][0],
                dtype="bfloat16",
                vocab_size=config["vocab_size"],
                max_model_len=config["max_position_embeddings"],
                eos_token_ids=(),
            ),
            dtype="bfloat16",
            kv_dtype="bfloat16",
            quantization=None,
            block_size=64,
            device="meta",
            max_model_len=8192,
            trust_remote_code=False,
            show_progress=False,
        )
        table = OpTable()
        fill(table)
        ops.register(table, "tpu")
        site = Site(table, SoloCommunicator(), torch.bfloat16, "meta", None)
        self.model = build(request, *declared(request), _Shapes(), site)
        specs = self.model.attention_specs()
        made = {spec: KernelAttention(spec, "cpu", self.programs) for spec in dict.fromkeys(specs)}
        self.backends = [made[spec] for spec in specs]
        some = ShapeBuckets(tokens=(1,), requests=(1,), decodes=(1,), blocks=(1,))
        self._runner = CompiledRunner(some, self.programs)
        self.caches = [one.allocate(num_blocks) for one in self.backends]

    def forward(self, inputs: StepInputs):
        plans = {one: one.plan(inputs.metadata) for one in self.backends}

        def attend(layer, q_THD, k_TKD, v_TKD):
            backend = self.backends[layer]
            return backend.forward(q_THD, k_TKD, v_TKD, self.caches[layer], plans[backend])[0]

        return self.model.forward(inputs.input_ids, inputs.positions, attend)

    def step(self, shape: Shape):
        t, n = shape.tokens, shape.requests
        sizes = ((n + 1,), (n,), (n, shape.blocks), (t,))
        step = StepMetadata(
            *(torch.zeros(size, dtype=torch.int32) for size in sizes),
            max_query=1 if shape.decode else t,
            max_length=shape.blocks * 64,
            num_decodes=n if shape.decode else 0,
        )
        ids, positions = torch.zeros(2, t, dtype=torch.int64)
        return self._runner.run(self.forward, StepInputs(ids, positions, step))

    def projection(self, shape: Shape):
        width = self.model._norm.weight.shape[0]
        hidden = torch.zeros(shape.tokens, width, dtype=torch.bfloat16)
        rows = torch.zeros(shape.requests, dtype=torch.int64)
        return self._runner.project(self.model.logits, hidden, rows)
