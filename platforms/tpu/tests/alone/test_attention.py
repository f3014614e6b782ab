"""Attention: the kit's cases, and the kernels beside jax's own operations."""

import jax
import numpy as np
import pytest
import torch

import engine_tpu
from engine.platform import AttentionSpec, StepMetadata
from engine.testing.checks import cases
from engine.testing.conformance import PlatformTests
from engine_tpu.attention import InterpretedAttention, KernelAttention, PlainAttention
from engine_tpu.placement import Placement
from engine_tpu.programs import Programs


class TestOnASimulatedChip(PlatformTests):
    """With attention in jax's own operations: those of the kit's cases that differ most, because
    each compiles programs of its own. `engine certify --device tpu_simulated` has them all."""

    NAMES = ("mixed", "copy-on-write", "poisoned", "window-and-soft-cap")

    def pytest_generate_tests(self, metafunc):
        if "case" in metafunc.fixturenames:
            wanted = [f"attention/float32/{name}" for name in self.NAMES]
            found = [case for case in cases("attention") if case.id in wanted]
            assert len(found) == len(wanted)
            found += cases("memory")
            metafunc.parametrize("case", found, ids=[case.id for case in found])

    @pytest.fixture
    def platform(self):
        specs = {spec.name: spec for spec in engine_tpu.engine_platforms()}
        return specs["tpu_simulated"]


def spec(**facts):
    usual = {"num_heads": 8, "num_kv_heads": 4, "head_dim": 64, "block_size": 16, "scale": 0.125}
    return AttentionSpec(**{**usual, "dtype": "float32", "kv_dtype": "float32", **facts})


def steps():
    """A prompt's parts beside single tokens, then single tokens alone; two rows are padding."""
    tables = torch.tensor([[3, 1], [0, 2], [5, 4]], dtype=torch.int32)
    for starts, stops, rows in (([0, 0, 0], [1, 20, 7], 32), ([1, 20, 7], [2, 21, 8], 3)):
        counts = [stop - start for start, stop in zip(starts, stops, strict=True)]
        query_start = torch.tensor([0, *np.cumsum(counts)], dtype=torch.int32)
        slots = [
            int(table[at // 16]) * 16 + at % 16
            for table, start, stop in zip(tables, starts, stops, strict=True)
            for at in range(start, stop)
        ]
        slots += [6 * 16] * (rows - len(slots))  # the spare block
        lengths = torch.tensor(stops, dtype=torch.int32)
        decode = len(counts) if max(counts) == 1 else 0
        most = max(counts)
        yield StepMetadata(query_start, lengths, tables, torch.tensor(slots), most, 32, decode)


def outputs(kind, chips, spec):
    """Of the rows that are requests', of both steps."""
    backend = kind(spec, "cpu", Programs(Placement.over(jax.devices()[:chips])))
    cache, found = backend.allocate(7), []
    random = torch.Generator().manual_seed(0)
    for step in steps():
        rows = len(step.slots)
        q, k, v = (
            torch.randn(rows, heads, spec.head_dim, generator=random).to(getattr(torch, spec.dtype))
            for heads in (spec.num_heads, spec.num_kv_heads, spec.num_kv_heads)
        )
        out, cache = backend.forward(q, k, v, cache, backend.plan(step))
        found.append(out[: step.query_start[-1]])
        cache = backend.copy_blocks(cache, [(3, 6), (1, 3), (6, 1)][:1])
    return torch.cat(found).float(), torch.from_numpy(np.array(cache.array, dtype=np.float32))[:6]


@pytest.mark.parametrize(
    ("facts", "chips"), [({"window": 5}, 1), ({"head_dim": 128, "soft_cap": 3.0}, 4)], ids=str
)
def test_kernels_compute_what_jaxs_own_operations_do(facts, chips):
    out, cache = outputs(InterpretedAttention, chips, spec(**facts))
    plain_out, plain_cache = outputs(PlainAttention, 1, spec(**facts))
    assert torch.allclose(out, plain_out, atol=1e-5)
    assert torch.equal(cache, plain_cache)


def test_more_chips_than_heads_have_copies_of_them():
    few = spec(num_heads=4, num_kv_heads=2)
    backend = PlainAttention(few, "cpu", Programs(Placement.over(jax.devices()[:4])))
    assert backend.kv_layout().shape[1] == 4
    assert torch.allclose(
        outputs(PlainAttention, 4, few)[0], outputs(PlainAttention, 1, few)[0], atol=1e-5
    )


def test_what_no_kernel_serves_is_told():
    refuses = KernelAttention.unsupported
    assert refuses(spec()) is None
    assert "float16" in refuses(spec(dtype="float16", kv_dtype="float16"))
    assert "blocks of 48 tokens" in refuses(spec(block_size=48))
    assert refuses(spec(head_dim=512)) is not None
