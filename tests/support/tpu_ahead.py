"""Steps of models that are not here, compiled for chips that are not here.

libtpu's compiler needs no TPU; weights are shapes. What is compiled is what an engine on chips of
this kind would run: the core's decoder, traced by the platform, with the platform's own kernels.
"""

import json
from pathlib import Path

import jax
import torch
from jax.experimental import topologies

from engine.facts import ModelFacts
from engine.layers import Site
from engine.models.load_request import LoadRequest
from engine.models.loading import build, declared
from engine.models.outlining import _Shapes
from engine.ops import fill
from engine.platform import OpTable, Shape, SoloCommunicator, StepInputs, StepMetadata
from engine_tpu import ops
from engine_tpu.arrays import jax_dtype
from engine_tpu.attention import KernelAttention
from engine_tpu.placement import WHOLE, Placement
from engine_tpu.programs import Programs, as_projection, as_step

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
    """Weights and caches are shapes, with the place where they would be."""

    def zeros(self, shape, dtype, sharding):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    def place(self, weight):
        part, sharding = weight.part, self.placement.sharding(weight.spec)
        return jax.ShapeDtypeStruct(tuple(part.shape), jax_dtype(part.dtype), sharding=sharding)


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
        self.caches = [one.allocate(num_blocks) for one in self.backends]

    def forward(self, inputs: StepInputs):
        plans = {one: one.plan(inputs.metadata) for one in self.backends}

        def attend(layer, q_THD, k_TKD, v_TKD):
            backend = self.backends[layer]
            return backend.forward(q_THD, k_TKD, v_TKD, self.caches[layer], plans[backend])[0]

        return self.model.forward(inputs.input_ids, inputs.positions, attend)

    def step(self, shape: Shape):
        like = StepMetadata(
            *(torch.empty(0),) * 4,
            max_query=1 if shape.decode else shape.tokens,
            max_length=shape.blocks * 64,
            num_decodes=shape.requests if shape.decode else 0,
        )
        t, n = shape.tokens, shape.requests
        sizes = ((t,), (t,), (n + 1,), (n,), (n, shape.blocks), (t,))
        return self._compile(as_step(self.forward, like), [self._whole(one) for one in sizes])

    def projection(self, shape: Shape):
        hidden = self._whole((shape.tokens, self.model._norm.weight.shape[0]), "bfloat16")
        inputs = [hidden, self._whole((shape.requests,))]
        return self._compile(as_projection(self.model.logits), inputs)

    def _whole(self, shape, dtype="int32"):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=self.programs.placement.sharding(WHOLE))

    def _compile(self, compute, inputs):
        found = self.programs.tracer.discover(compute, inputs)
        weights = [self.programs.place(one) for one in found.weights]
        return self.programs.lower(compute, found, inputs, weights)
