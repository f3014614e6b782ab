"""A small model and round-numbered devices, whose times one can work out by hand."""

from array import array
from collections.abc import Sequence

from engine.config import EngineConfig
from engine.platform import ShapeBuckets
from engine.platform.base import Capabilities
from engine.platform.profile import DeviceProfile
from engine.simulate.cost import TimeModel
from engine.simulate.model import ModelSize, Windows
from engine.simulate.replica import Setup
from engine.simulate.trace import Trace

SIZE = ModelSize(
    linear=1_000_000,
    expert=0,
    experts=0,
    active_experts=0,
    output=200_000,
    embedding=200_000,
    other=1_000,
    width=100,
    vocab_size=2_000,
    heads=4,
    kv_heads=2,
    head_dim=25,
    layers=10,
    windows=(Windows(None, 10),),
    layer_activations=1_000,
)
PROFILE = DeviceProfile(
    name="round",
    memory_bytes=10**9,
    bandwidth=1e9,
    flops={"bfloat16": 1e11},
    launch_s=0.001,
    link_bandwidth=1e8,
    link_latency_s=1e-5,
)


def time_model(
    size: ModelSize = SIZE,
    profile: DeviceProfile = PROFILE,
    *,
    ranks: int = 1,
    quantization: str | None = None,
    buckets: ShapeBuckets | None = None,
) -> TimeModel:
    return TimeModel(
        size,
        profile,
        dtype="bfloat16",
        kv_dtype="bfloat16",
        block_size=16,
        ranks=ranks,
        quantization=quantization,
        buckets=buckets,
    )


def make_setup(
    *,
    num_blocks: int = 2_000,
    max_model_len: int = 8_192,
    overlap: bool = True,
    caching: bool = False,
    mixed: bool = True,
    chunked: bool = True,
    leaping: bool = True,
    max_requests: int = 32,
    max_batch_tokens: int = 256,
    step_target_s: float | None = None,
    buckets: ShapeBuckets | None = None,
    model: TimeModel | None = None,
) -> Setup:
    return Setup(
        config=EngineConfig(
            prefix_caching=caching,
            overlap=overlap,
            max_requests=max_requests,
            max_batch_tokens=max_batch_tokens,
            step_target_s=step_target_s,
        ),
        capabilities=Capabilities(
            mixed_batches=mixed,
            chunked_prefill=chunked,
            prefix_reuse=True,
            overlap=True,
            static_shapes=buckets is not None,
        ),
        buckets=buckets,
        num_blocks=num_blocks,
        block_size=16,
        max_model_len=max_model_len,
        model=model or time_model(buckets=buckets),
        period_s=1.0,
        leaping=leaping,
    )


def make_trace(*requests: tuple[float, int, int], blocks: Sequence[tuple[int, ...]] = ()) -> Trace:
    """Of (arrival, input tokens, output tokens)."""
    return Trace(
        array("d", (request[0] for request in requests)),
        array("l", (request[1] for request in requests)),
        array("l", (request[2] for request in requests)),
        list(blocks),
    )
