from dataclasses import replace
from typing import Any

import pytest
import torch
from paged_steps import TOLERANCES, PagedStep, spec_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from engine.platform import AttentionSpec, Packed, Prologue, StepMetadata
from engine_triton.architecture import Architecture
from engine_triton.attention.backend import PagedAttention, Plan

#: (length, rows): two decodes, two prompts, of which one is continued.
MIXED = ((40, 1), (7, 1), (50, 20), (18, 18))


def backend_of(step: PagedStep, architecture: Architecture) -> PagedAttention:
    return PagedAttention(step.spec, "cpu", architecture)


def storing(step: PagedStep) -> tuple[StepMetadata, Tensor, Tensor]:
    """The step's metadata with its slots; keys and values [T, K, D] to be stored there."""
    size, dtype = step.spec.block_size, step.q_THD.dtype
    slots: list[int] = []
    for one in step.requests:
        for token in range(one.length - one.rows, one.length):
            slots.append(one.blocks[token // size] * size + token % size)
    k, v = (
        torch.cat([getattr(one, name)[-one.rows :] for one in step.requests]).to(dtype)
        for name in ("k_LKD", "v_LKD")
    )
    return replace(step.metadata, slots=torch.tensor(slots)), k, v


def forget(step: PagedStep, slots: Tensor) -> None:
    """What the step is to store is not in the cache yet."""
    size = step.spec.block_size
    for slot in slots.tolist():
        step.cache[slot // size, :, :, slot % size] = float("nan")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_of_decodes_and_prompts_is_stored_and_attended(
    architecture: Architecture, dtype: str
) -> None:
    step = PagedStep(spec_of(dtype=dtype), architecture, MIXED)
    given, k, v = storing(step)
    forget(step, given.slots)
    backend = backend_of(step, architecture)
    out, cache = backend.forward(step.q_THD, k, v, step.cache, backend.plan(given))
    assert cache is step.cache
    assert step.error(out) < TOLERANCES[dtype]


def test_rows_may_be_parts_of_a_projection(architecture: Architecture) -> None:
    step = PagedStep(spec_of(), architecture, MIXED)
    given, k, v = storing(step)
    forget(step, given.slots)
    packed = torch.cat((step.q_THD, k, v), dim=1)
    backend = backend_of(step, architecture)
    parts = packed.split((4, 2, 2), dim=1)
    out, _ = backend.forward(*parts, step.cache, backend.plan(given))
    assert step.error(out) < TOLERANCES["float32"]


def test_a_packed_step_is_what_its_parts_are_one_by_one(architecture: Architecture) -> None:
    """With angles of zero and without a norm the prologue changes nothing."""
    step = PagedStep(spec_of(), architecture, MIXED)
    given, k, v = storing(step)
    forget(step, given.slots)
    backend, what = backend_of(step, architecture), Prologue(rotary_dim=32)
    assert backend.fuses(what)
    tokens = len(given.slots)
    packed = Packed(
        torch.cat((step.q_THD, k, v), dim=1).flatten(1),
        torch.ones(tokens, 16),
        torch.zeros(tokens, 16),
    )
    out, _ = backend.forward_packed(packed, what, step.cache, backend.plan(given))
    assert step.error(out) < TOLERANCES["float32"]


@pytest.mark.parametrize("rotary_dim", [0, 7, 34])
def test_what_cannot_be_rotated_in_halves_is_not_fused(
    architecture: Architecture, rotary_dim: int
) -> None:
    backend = PagedAttention(spec_of(), "cpu", architecture)
    assert not backend.fuses(Prologue(rotary_dim=rotary_dim))
    assert backend.fuses(Prologue(rotary_dim=8, norm_epsilon=1e-6))


def test_padding_of_a_captured_step_stores_nothing_and_breaks_nothing(
    architecture: Architecture,
) -> None:
    """Length 1, block 0, no slot: as a captured graph pads its bucket."""
    step = PagedStep(spec_of(), architecture, ((40, 1), (7, 1), (1, 1), (1, 1)))
    given, k, v = storing(step)
    real = given.slots.clone()
    real[2:] = -1
    forget(step, given.slots[:2])
    given.block_table[2:] = 0
    before = step.cache.clone()
    backend = backend_of(step, architecture)
    plan = backend.plan(replace(given, slots=real, max_length=4096))
    out, cache = backend.forward(step.q_THD, k, v, step.cache, plan)
    changed = (cache.nan_to_num(9) != before.nan_to_num(9)).any(-1).nonzero()
    size = step.spec.block_size
    assert {int(b) * size + int(s) for b, _, _, s in changed} == set(real[:2].tolist())
    assert torch.allclose(out[:2].double(), step.exact()[:2], atol=1e-5)


def test_a_plan_needs_nothing_that_tensors_hold(architecture: Architecture) -> None:
    """So that a captured graph serves steps of other lengths."""
    step = PagedStep(spec_of(), architecture, ((1, 1), (1, 1)))
    backend = backend_of(step, architecture)
    given = replace(step.metadata, max_length=5000)
    plan = backend.plan(given)
    assert isinstance(plan, Plan)
    assert plan.decode is not None
    assert plan.decode.splits > 1
    longer = PagedStep(step.spec, architecture, ((500, 1), (90, 1)))
    filled = longer.metadata
    replayed = replace(
        plan, slots=filled.slots, lengths=filled.lengths, block_table=filled.block_table
    )
    k = longer.normal(2, 2)
    out, _ = backend.forward(longer.q_THD, k, k, longer.cache, replayed)
    assert longer.error(out) < TOLERANCES["float32"]


class Watch(TorchDispatchMode):
    """Fails where the host asks what a tensor holds, which waits for a device."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        waits = ("aten._local_scalar_dense", "aten.nonzero", "aten.unique", "aten.is_nonzero")
        assert not str(function).startswith(waits), f"{function} waits for the device"
        return function(*args, **(kwargs or {}))


def test_no_step_waits_for_the_device(
    architecture: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = PagedStep(spec_of(), architecture, MIXED)
    given, k, v = storing(step)
    backend, what = backend_of(step, architecture), Prologue(rotary_dim=32)
    assert backend.fuses(what)
    packed = torch.cat((step.q_THD, k, v), dim=1).flatten(1)
    angles = torch.zeros(len(given.slots), 16)
    monkeypatch.setattr(Tensor, "tolist", None)  # which is not dispatched on the host
    with Watch():
        plan = backend.plan(given)
        backend.forward(step.q_THD, k, v, step.cache, plan)
        backend.forward_packed(Packed(packed, angles, angles), what, step.cache, plan)
    with pytest.raises(AssertionError, match="waits for the device"), Watch():
        given.lengths[0].item()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"dtype": "int8"}, "dtype 'int8' is not one of float32"),
        ({"kv_dtype": "int4"}, "kv_dtype 'int4' is not one of float32"),
        ({"num_heads": 0}, "at least 1"),
        ({"num_heads": 3}, "3 heads cannot share 2 key/value heads evenly"),
        ({"head_dim": 257}, "head_dim is at most 256, got 257"),
        ({"window": 0}, "window must be at least 1"),
        ({"soft_cap": 0.0}, "soft_cap must be more than 0"),
        ({}, None),
    ],
)
def test_reasons_are_told_one_by_one(changes: dict[str, Any], reason: str | None) -> None:
    spec: AttentionSpec = spec_of(**changes)
    told = PagedAttention.unsupported(spec)
    assert told is None if reason is None else reason in (told or "")


@pytest.mark.parametrize(("kv_dtype", "size"), [("float32", 4), ("bfloat16", 2), ("fp8_e4m3", 1)])
def test_the_layout_says_what_is_allocated(
    architecture: Architecture, kv_dtype: str, size: int
) -> None:
    backend = PagedAttention(spec_of(kv_dtype=kv_dtype), "cpu", architecture)
    layout = backend.kv_layout()
    assert layout.shape == (2, 2, 16, 32)
    assert layout.dtype == kv_dtype
    assert layout.bytes_per_block == 2 * 2 * 16 * 32 * size
    cache = backend.allocate(5)
    assert cache.nbytes == 5 * layout.bytes_per_block
    assert not cache.any()  # rows that are padding read block 0, and must not meet a NaN


def test_blocks_are_copied_within_a_cache_and_to_another(architecture: Architecture) -> None:
    backend = PagedAttention(spec_of(), "cpu", architecture)
    cache, other = backend.allocate(4).normal_(), backend.allocate(4).zero_()
    first = cache[0].clone()
    assert backend.copy_blocks(cache, [(0, 3)]) is cache
    assert torch.equal(cache[3], first)
    backend.copy_between(cache, other, [(0, 1)])
    assert torch.equal(other[1], first)
    assert not other[[0, 2, 3]].any()
