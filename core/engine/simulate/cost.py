"""The time model: seconds of one step, as a roofline of what it reads and what it computes.

    step = launch + layers * layer launch + requests * host work
           + roof(weights and activations of the layers / bandwidth, their operations / rate)
           + roof(output layer's, likewise)
           + roof(KV read and written / bandwidth, attention's operations / rate)
           + collectives between the ranks
    roof = max(reading, computing), and of the shorter one what the device does not hide behind it

(Williams et al., 2009, Roofline; the groups run one after the other, so their times add up.)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from engine.batch import Batch
from engine.errors import UnsupportedError
from engine.platform.profile import DeviceProfile
from engine.platform.shapes import Shape, ShapeBuckets
from engine.simulate.model import DTYPE_BYTES, QUANTIZED_BYTES, ModelSize

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: A collective over p ranks moves 2 (p-1)/p of its bytes through each link, as a ring does.
COLLECTIVES_PER_LAYER = 2


class Work(NamedTuple):
    """What a step has to do. Context is counted once a layer: 3 tokens seen by 2 layers are 6."""

    tokens: int  # computed
    samples: int  # tokens that the output layer is asked about
    requests: int
    kv_read: int  # tokens of context read from the cache
    pairs: int  # of a query and a key


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What a step's seconds are made of: the model's numbers over the device's. Of one rank."""

    fixed_s: float
    request_s: float
    weights_s: float  # to read the linear layers' weights once
    expert_s: float  # to read one expert's weights in all layers
    experts: int
    active_experts: int
    token_bytes_s: float  # activations of one token, in all layers
    token_flops_s: float  # linear layers' operations of one token
    output_s: float  # to read the output layer's weights
    sample_bytes_s: float
    sample_flops_s: float
    kv_bytes_s: float  # one token's keys and values in one layer
    kv_write_s: float  # in all layers
    pair_flops_s: float  # one query and one key, all heads, one layer
    collective_s: float  # latency of all of a step's
    token_link_s: float  # to move one token's share of them
    bare: float  # share of the shorter of reading and computing that adds to the longer one

    def roof(self, read_s: float, computed_s: float) -> float:
        return max(read_s, computed_s) + self.bare * min(read_s, computed_s)


class TimeModel:
    """Predicts seconds of steps of one model on one kind of device.

    `ranks` devices share the model; `buckets`: steps are padded to them.

    Raises:
        UnsupportedError: the profile has no rate for the dtype, or no link between several ranks.
    """

    def __init__(
        self,
        size: ModelSize,
        profile: DeviceProfile,
        *,
        dtype: str,
        kv_dtype: str,
        block_size: int,
        quantization: str | None = None,
        ranks: int = 1,
        buckets: ShapeBuckets | None = None,
    ) -> None:
        self.size = size
        self.profile = profile
        self.block_size = block_size
        self.buckets = buckets
        self._rates = _rates(size, profile, dtype, kv_dtype, quantization, ranks)
        self._fits: dict[tuple[int, int, int, bool], Shape] = {}
        self._windows = [(one.tokens, one.layers) for one in size.windows]

    def seconds(self, work: Work) -> float:
        """Of one step."""
        rest = self._beside_attention(work.tokens, work.samples, work.requests)
        return rest + self._attention(work.tokens, work.kv_read, work.pairs)

    def decode_seconds(self, contexts: Sequence[int], steps: int) -> "NDArray[np.float64]":
        """Of decode steps, one after the other, [steps]: each computes a token of each request. In
        the first one it sees `contexts[i]` tokens, its own among them. To the last bit the same as
        `seconds` of each step."""
        if self.buckets is not None or self._windows != [(None, self.size.layers)]:
            each = (self.seconds(self._decode_work(contexts, later)) for later in range(steps))
            return np.fromiter(each, np.float64, steps)
        rates, tokens, layers = self._rates, len(contexts), self.size.layers
        seen = (sum(contexts) + tokens * np.arange(steps)) * layers
        read = seen * rates.kv_bytes_s + tokens * rates.kv_write_s
        computed = seen * rates.pair_flops_s
        attention = np.maximum(read, computed) + rates.bare * np.minimum(read, computed)
        steps_s: NDArray[np.float64] = self._beside_attention(tokens, tokens, tokens) + attention
        return steps_s

    def _attention(self, tokens: int, kv_read: int, pairs: int) -> float:
        rates = self._rates
        read = kv_read * rates.kv_bytes_s + tokens * rates.kv_write_s
        return rates.roof(read, pairs * rates.pair_flops_s)

    def _beside_attention(self, tokens: int, samples: int, requests: int) -> float:
        rates = self._rates
        read = rates.weights_s + tokens * rates.token_bytes_s
        if rates.experts:
            used = 1 - (1 - rates.active_experts / rates.experts) ** tokens
            read += rates.expert_s * rates.experts * used
        linear = rates.roof(read, tokens * rates.token_flops_s)
        output = 0.0
        if samples:
            output_read = rates.output_s + samples * rates.sample_bytes_s
            output = rates.roof(output_read, samples * rates.sample_flops_s)
        links = rates.collective_s + tokens * rates.token_link_s
        return rates.fixed_s + requests * rates.request_s + linear + output + links

    def work(self, batch: Batch) -> Work:
        """What a batch has to do, padding included."""
        slices = batch.slices
        if self.buckets is not None:
            parts = [(part.start, part.stop) for part in slices]
            return self._padded(parts, self.buckets)
        tokens = samples = kv_read = pairs = 0
        if self._windows == [(None, self.size.layers)]:
            for part in slices:
                start, stop = part.start, part.stop
                new = stop - start
                tokens += new
                samples += part.samples
                kv_read += stop
                pairs += new * start + _triangle(new)
            layers = self.size.layers
            return Work(tokens, samples, len(slices), kv_read * layers, pairs * layers)
        for part in slices:
            tokens += part.stop - part.start
            samples += part.samples
            kv_read += self._seen(part.start, part.stop)
            pairs += self._pairs(part.start, part.stop)
        return Work(tokens, samples, len(slices), kv_read, pairs)

    def _decode_work(self, contexts: Sequence[int], later: int) -> Work:
        """Of a decode step so many steps later."""
        requests = len(contexts)
        parts = [(one + later - 1, one + later) for one in contexts]
        if self.buckets is not None:
            return self._padded(parts, self.buckets)
        seen = sum(self._seen(*part) for part in parts)
        return Work(requests, requests, requests, seen, seen)

    def _seen(self, start: int, stop: int) -> int:
        """Tokens of context that queries start:stop need, counted once a layer."""
        seen = 0
        for window, layers in self._windows:
            seen += layers * (stop if window is None else min(stop, stop - start - 1 + window))
        return seen

    def _pairs(self, start: int, stop: int) -> int:
        """Pairs of queries start:stop and the keys they see, over all layers."""
        pairs = 0
        for window, layers in self._windows:
            full = _triangle(stop) - _triangle(start)
            if window is not None:  # a query at position p sees min(p + 1, window) keys
                full -= _triangle(max(0, stop - window)) - _triangle(max(0, start - window))
            pairs += layers * full
        return pairs

    def _padded(self, parts: Sequence[tuple[int, int]], buckets: ShapeBuckets) -> Work:
        """A program computes its whole shape, and attention every entry of its block tables."""
        tokens = sum(stop - start for start, stop in parts)
        blocks = -(-max(stop for _, stop in parts) // self.block_size)
        decode = all(stop - start == 1 for start, stop in parts)
        shape = self._fit(tokens, len(parts), blocks, decode, buckets)
        context = shape.blocks * self.block_size * self.size.layers
        return Work(
            shape.tokens,
            shape.requests,
            shape.requests,
            shape.requests * context,
            shape.tokens * context,
        )

    def _fit(
        self, tokens: int, requests: int, blocks: int, decode: bool, buckets: ShapeBuckets
    ) -> Shape:
        wanted = (tokens, requests, blocks, decode)
        if wanted not in self._fits:
            shape = buckets.fit(tokens, requests, blocks, decode=decode)
            if shape is None:
                raise UnsupportedError(
                    f"there is no bucket for a step of {tokens} tokens, {requests} requests and"
                    f" block tables of {blocks} entries"
                )
            self._fits[wanted] = shape
        return self._fits[wanted]


def _triangle(most: int) -> int:
    """1 + 2 + … + most"""
    return most * (most + 1) // 2


def _rates(
    size: ModelSize,
    profile: DeviceProfile,
    dtype: str,
    kv_dtype: str,
    quantization: str | None,
    ranks: int,
) -> Rates:
    if dtype not in profile.flops:
        raise UnsupportedError(
            f"{profile.name} has no rate for {dtype}; it has {', '.join(profile.flops)}: choose"
            " another --dtype"
        )
    if ranks > 1 and not profile.link_bandwidth:
        raise UnsupportedError(f"{profile.name} has no link to other devices: use one device")
    width, kv_width = DTYPE_BYTES[dtype], DTYPE_BYTES[kv_dtype]
    weight = width if quantization is None else QUANTIZED_BYTES[quantization]
    bandwidth = profile.bandwidth * profile.reached_bandwidth * ranks
    flops = profile.flops[dtype] * profile.reached_flops * ranks
    active = size.linear + size.expert * size.active_experts
    kv_s = size.kv_per_layer * kv_width / bandwidth
    links = COLLECTIVES_PER_LAYER * size.layers if ranks > 1 else 0
    moved = links * size.width * width * 2 * (ranks - 1) / ranks
    return Rates(
        fixed_s=profile.launch_s + size.layers * profile.layer_s,
        request_s=profile.request_s,
        weights_s=(size.linear * weight + size.other * width) / bandwidth,
        expert_s=size.expert * weight / bandwidth,
        experts=size.experts,
        active_experts=size.active_experts,
        token_bytes_s=size.layers * size.layer_activations * width / bandwidth,
        token_flops_s=2 * active / flops,
        output_s=size.output * weight / bandwidth,
        # logits: written, read by the sampler, in float32
        sample_bytes_s=(size.width * width + 2 * size.vocab_size * 4) / bandwidth,
        sample_flops_s=2 * size.output / flops,
        kv_bytes_s=kv_s,
        kv_write_s=kv_s * size.layers,
        pair_flops_s=4 * size.heads * size.head_dim / flops,
        collective_s=links * profile.link_latency_s,
        token_link_s=moved / profile.link_bandwidth if ranks > 1 else 0.0,
        bare=1 - profile.overlap,
    )
