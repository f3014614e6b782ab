"""The Acme NPU with static shapes: a program for each shape, and none else. Imports torch."""

from dataclasses import replace

import torch
from broken_platforms import with_platform

from engine.platform import GraphRunner, ShapeBuckets
from engine_acme_npu.attention import AcmeAttention
from engine_acme_npu.platform import AcmePlatform


class StaticAttention(AcmeAttention):
    """Rows that are padding belong to nobody, and get a result of zeros."""

    def forward(self, q, k, v, cache, plan):
        rows = plan.rows[-1][1]
        out, cache = super().forward(q, k, v, cache, plan)
        return torch.cat([out, out.new_zeros(len(q) - rows, *out.shape[1:])]), cache


class Programs(GraphRunner):
    """Counts a program for each shape that it meets."""

    def __init__(self, buckets):
        self.num_compiled = 0
        self.buckets = buckets
        self._made = set()

    def warm_up(self, forward, make_inputs):
        for shape in self.buckets.shapes():
            self.run(forward, make_inputs(shape.requests, shape.tokens, shape))

    def run(self, forward, inputs):
        shape = (len(inputs.input_ids), tuple(inputs.metadata.block_table.shape))
        if shape not in self._made:
            self._made.add(shape)
            self.num_compiled += 1
        return forward(inputs)


def static(good, *, attention=StaticAttention, programs=Programs, missing="error", **members):
    """The good spec of the Acme NPU, with static shapes, and these parts in place of others."""

    def buckets(self, limits):
        self.static_buckets = ShapeBuckets.doubling(limits, missing=missing)
        return self.static_buckets

    return with_platform(
        good,
        **{
            "capabilities": replace(AcmePlatform.capabilities, static_shapes=True),
            "attention": lambda self, spec: attention(spec, self.device),
            "buckets": buckets,
            "graphs": lambda self: programs(self.static_buckets),
            **members,
        },
    )
