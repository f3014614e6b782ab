"""What a model would need and reach on a device, without loading its weights."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from engine.batch import Batch, Slice
from engine.errors import UnsupportedError
from engine.platform import MemorySnapshot
from engine.simulate.cost import TimeModel
from engine.simulate.model import DTYPE_BYTES
from engine.simulate.target import Target, accuracy

if TYPE_CHECKING:
    from engine.runner.memory import Ledger

#: Tokens of the prompt, and of context, that speed is told for.
CONTEXT = 1024
#: Tensors of logits, in float32, that sampling holds at once: sorting needs values and places.
LOGITS_COPIES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Predicted."""

    ttft_s: float  # of a prompt of CONTEXT tokens, alone
    stream_tokens_per_s: float  # one request, at CONTEXT tokens of context
    batch: int  # requests of that context that run at once
    batch_tokens_per_s: float  # of all of them
    accuracy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    ledger: "Ledger"
    kv_token_bytes: int  # of one token, on one device
    max_context: int  # tokens that one request may have
    max_context_requests: int  # that may be so long at once
    speed: Speed | None
    why_no_speed: str = ""

    def as_json(self) -> dict[str, Any]:
        ledger = {**asdict(self.ledger), "reserve": self.ledger.reserve}
        return {
            "ledger": ledger,
            "kv_token_bytes": self.kv_token_bytes,
            "max_context": self.max_context,
            "max_context_requests": self.max_context_requests,
            "speed": asdict(self.speed) if self.speed else None,
            "why_no_speed": self.why_no_speed,
        }


def make_plan(target: Target) -> Plan:
    """
    Raises:
        CapacityError: the model does not fit the device.
    """
    ledger = _ledger(target)
    tokens = ledger.num_blocks * ledger.block_size
    context = min(target.chosen.max_model_len, tokens)
    blocks = -(-context // ledger.block_size)
    speed, why = None, ""
    try:
        speed = _speed(target, target.time_model(), tokens)
    except UnsupportedError as error:
        why = str(error)
    return Plan(
        ledger=ledger,
        kv_token_bytes=_kv_bytes(target, 1),
        max_context=context,
        max_context_requests=min(target.config.max_requests, ledger.num_blocks // blocks),
        speed=speed,
        why_no_speed=why,
    )


def _ledger(target: Target) -> "Ledger":
    """As the runner makes it, from estimates in the place of measurements. Of one device."""
    from engine.runner.memory import STATISTICS_SHARE, size_cache  # its package brings torch

    config, block_size, here = target.config, target.chosen.block_size, target.memory
    ranks = config.tensor_parallel
    weights = round(target.size.weight_bytes(target.chosen.dtype, config.quantization) / ranks)
    loaded = MemorySnapshot(
        total=here.total, free=here.free - weights, used=here.used + weights, peak=0
    )
    return size_cache(
        start=here,
        loaded=loaded,
        weights=weights,
        activations=(
            int(here.total * STATISTICS_SHARE)
            if target.memory_kind == "statistics"
            else activation_bytes(target)
        ),
        fraction=config.memory_fraction,
        block_bytes=_kv_bytes(target, block_size),
        block_size=block_size,
        most_blocks=-(-target.chosen.max_model_len // block_size) * config.max_requests,
        wanted=config.num_blocks,
    )


def activation_bytes(target: Target) -> int:
    """An estimate of the most that a step needs beside weights and cache, on one device."""
    config, size = target.config, target.size
    tokens = config.max_batch_tokens
    if not target.capabilities.chunked_prefill:
        tokens = max(tokens, target.chosen.max_model_len)
    width, ranks = DTYPE_BYTES[target.chosen.dtype], config.tensor_parallel
    # The residual and what is added to it; of a layer's other tensors about half live at once.
    hidden = tokens * (2 * size.width + size.layer_activations / 2 / ranks) * width
    logits = min(config.max_requests, tokens) * size.vocab_size * 4 * LOGITS_COPIES
    return round(hidden + logits)


def _kv_bytes(target: Target, tokens: int) -> int:
    ranks = min(target.config.tensor_parallel, target.size.kv_heads)  # heads are not cut
    return target.size.kv * DTYPE_BYTES[target.chosen.kv_dtype] * tokens // ranks


def _speed(target: Target, model: TimeModel, tokens: int) -> Speed:
    context = min(CONTEXT, target.chosen.max_model_len, tokens)
    blocks = -(-context // target.chosen.block_size)
    batch = min(target.config.max_requests, tokens // target.chosen.block_size // blocks)
    if target.buckets is not None:
        batch = min(batch, target.buckets.decodes[-1])
    return Speed(
        ttft_s=prefill_seconds(model, context, target.config.max_batch_tokens),
        stream_tokens_per_s=1 / float(model.decode_seconds([context], 1)[0]),
        batch=batch,
        batch_tokens_per_s=batch / float(model.decode_seconds([context] * batch, 1)[0]),
        accuracy=accuracy(target.profile),
    )


def prefill_seconds(model: TimeModel, tokens: int, most: int) -> float:
    """Of a prompt alone, in steps of at most so many tokens."""
    starts = range(0, tokens, most)
    slices = [Slice(1, one, min(tokens, one + most), one + most >= tokens) for one in starts]
    return sum(model.seconds(model.work(Batch(slices=(part,)))) for part in slices)
