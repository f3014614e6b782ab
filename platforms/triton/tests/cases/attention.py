"""Calls of the attention kernels, in the shapes that models have."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from triton_cases import Case

from engine.platform import AttentionSpec, Packed, Prologue, StepMetadata
from engine_triton.architecture import Architecture
from engine_triton.attention import store
from engine_triton.attention.blocks import BlockCopy, pairs_on
from engine_triton.attention.decode import Decode, DecodePlan
from engine_triton.attention.layout import DTYPES, KVFormat, block_shape
from engine_triton.attention.prefill import Prefill, PrefillPlan

#: Of Llama-3.1-8B, with the engine's usual blocks.
LLAMA: dict[str, Any] = {
    "num_heads": 32,
    "num_kv_heads": 8,
    "head_dim": 128,
    "block_size": 16,
    "dtype": "bfloat16",
    "kv_dtype": "bfloat16",
    "scale": 0.1,
}
REQUESTS, TOKENS = 2, 8


@dataclass(slots=True)
class Step:
    """Tensors of a step of `REQUESTS` requests with four rows each; what they hold matters not."""

    spec: AttentionSpec
    device: str
    architecture: Architecture
    form: KVFormat = field(init=False)
    cache: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.form = KVFormat.of(self.spec, self.architecture)
        shape = (4, *block_shape(self.spec))
        self.cache = torch.zeros(shape, dtype=self.form.memory, device=self.device)

    @property
    def seen(self) -> Tensor:
        return self.cache.view(self.form.reading)

    def heads(self, count: int) -> Tensor:
        dtype = DTYPES[self.spec.dtype]
        return torch.zeros(TOKENS, count, self.spec.head_dim, dtype=dtype, device=self.device)

    def whole(self, *numbers: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.tensor(numbers, dtype=dtype, device=self.device)

    @property
    def paging(self) -> tuple[Tensor, Tensor]:
        """Block table and lengths."""
        return self.whole(0, 1, 2, 3).view(REQUESTS, 2), self.whole(4, 4)

    @property
    def metadata(self) -> StepMetadata:
        table, lengths = self.paging
        slots = self.whole(*range(TOKENS), dtype=torch.int64)
        starts = self.whole(0, 4, 8)
        return StepMetadata(starts, lengths, table, slots, max_query=4, max_length=4, num_decodes=0)


def on(play: Callable[[Step], None], **spec: Any) -> Callable[[str, Architecture], None]:
    def run(device: str, architecture: Architecture) -> None:
        play(Step(AttentionSpec(**{**LLAMA, **spec}), device, architecture))

    return run


def decode(step: Step) -> None:
    """Without splits."""
    q, plan = step.heads(step.spec.num_heads), DecodePlan(REQUESTS, 1, None, None)
    kernel = Decode(step.spec, step.architecture, step.form)
    kernel(q, step.seen, *step.paging, plan, torch.empty_like(q))


def decode_in_parts(step: Step) -> None:
    kernel = Decode(step.spec, step.architecture, step.form)
    plan = kernel.plan(REQUESTS, 2**20, torch.device(step.device))
    assert plan.splits > 1
    q = step.heads(step.spec.num_heads)
    kernel(q, step.seen, *step.paging, plan, torch.empty_like(q))


def prefill(step: Step) -> None:
    work, starts = step.whole(0, 0, 1, 4).view(2, 2), step.whole(0, 4, 8)
    q, kernel = step.heads(step.spec.num_heads), Prefill(step.spec, step.architecture, step.form)
    plan = PrefillPlan(work, starts)
    kernel(q, step.seen, *step.paging, plan, torch.empty_like(q))


def store_and_copy(step: Step) -> None:
    """All that moves numbers and multiplies no matrices."""
    spec, architecture = step.spec, step.architecture
    slots = step.metadata.slots
    k = step.heads(spec.num_kv_heads)
    store.Store(spec, architecture, step.form)(k, k, slots, step.cache)
    qkv = step.heads(spec.num_heads + 2 * spec.num_kv_heads).flatten(1)
    norm = qkv[0, : spec.head_dim].contiguous()
    angles = torch.zeros(TOKENS, spec.head_dim // 2, device=step.device)
    what = Prologue(rotary_dim=spec.head_dim, norm_epsilon=1e-6)
    prologue = store.Prologue(spec, architecture, step.form, what)
    prologue(Packed(qkv, angles, angles, norm, norm), slots, step.cache)
    Prefill(spec, architecture, step.form).plan(step.metadata)
    pairs = pairs_on(torch.device(step.device), [(0, 2), (1, 3)])
    BlockCopy(architecture)(step.cache, step.cache, pairs)


GEMMA: dict[str, Any] = {"num_heads": 8, "num_kv_heads": 4, "head_dim": 256, "block_size": 64}
CAPPED: dict[str, Any] = {"window": 4096, "soft_cap": 50.0}
QWEN: dict[str, Any] = {"num_heads": 14, "num_kv_heads": 2, "head_dim": 64, "block_size": 256}

CASES = (
    Case("decode", on(decode), hot=True, matrix=True),
    Case("decode, in parts", on(decode_in_parts, **QWEN), hot=True, matrix=True),
    Case("decode, fp8 keys", on(decode, kv_dtype="fp8_e4m3"), hot=True, matrix=True),
    Case("decode, wide heads", on(decode, **GEMMA, **CAPPED), hot=True, matrix=True),
    Case("prefill", on(prefill), hot=True, matrix=True),
    Case("prefill, small heads", on(prefill, **QWEN), hot=True, matrix=True),
    Case("prefill, fp8 keys", on(prefill, kv_dtype="fp8_e4m3"), hot=True, matrix=True),
    Case("prefill, wide heads", on(prefill, **GEMMA, **CAPPED), hot=True, matrix=True),
    Case("prefill, float32", on(prefill, dtype="float32", kv_dtype="float32")),
    Case("store and copy", on(store_and_copy), hot=True),
)
