"""The native operations as the table hands them out, against the core's references."""

import numpy as np
import pytest
import torch
from torch import Tensor

from engine import ops
from engine.batch import Admission
from engine.params import SamplingParams
from engine.platform import OpTable
from engine.sampling.sampler import Sampler
from engine_cpu import native

pytestmark = pytest.mark.skipif(native.available() is not None, reason=str(native.available()))

TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}
dtypes = pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
tokens = pytest.mark.parametrize("tokens", [1, 3, 200])


@pytest.fixture
def table() -> OpTable:
    from engine_cpu.native import pointwise, sampling

    table = OpTable()
    ops.fill(table)
    pointwise.register(table)
    sampling.register(table)
    return table


def chosen(table: OpTable, name: str, dtype: torch.dtype):
    function = table.choose(name, dtype=str(dtype).removeprefix("torch."), device="cpu")
    assert function is not table.reference(name)
    return function


def normal(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def close(found: Tensor, right: Tensor, dtype: torch.dtype) -> None:
    assert found.dtype == dtype
    assert found.is_contiguous()
    assert found.shape == right.shape
    torch.testing.assert_close(found.double(), right.double(), rtol=TOLERANCES[dtype], atol=1e-6)


@dtypes
@tokens
def test_norms(table: OpTable, dtype: torch.dtype, tokens: int) -> None:
    qkv, weight = normal(dtype, tokens, 5, 64), normal(dtype, 64)
    norm, reference = chosen(table, "rms_norm", dtype), table.reference("rms_norm")
    transposed = normal(dtype, 64, tokens).T
    for x in (
        qkv[:, 0],
        qkv[:, 1:4],
        qkv.contiguous(),
        qkv[:, :4].unflatten(1, (2, 2)),
        transposed,
    ):
        close(norm(x, weight, 1e-5), reference(x.double(), weight.double(), 1e-5), dtype)
        close(norm(x, weight.float(), 1e-5), reference(x.double(), weight.double(), 1e-5), dtype)
    add_norm = chosen(table, "add_rms_norm", dtype)
    for x, residual in ((qkv[:, 0], qkv[:, 3]), (transposed, qkv[:, 2])):
        normed, total = add_norm(x, residual, weight, 1e-6)
        assert torch.equal(total, x + residual)
        close(normed, reference(total.double(), weight.double(), 1e-6), dtype)


def test_a_norm_refuses_weights_of_another_narrow_dtype(table: OpTable) -> None:
    norm = chosen(table, "rms_norm", torch.float16)
    with pytest.raises(TypeError, match=r"float16 takes weights of it or of float32"):
        norm(normal(torch.float16, 2, 8), torch.ones(8, dtype=torch.bfloat16), 1e-5)


@dtypes
@tokens
@pytest.mark.parametrize("rotated", [64, 32])
def test_rotary(table: OpTable, dtype: torch.dtype, tokens: int, rotated: int) -> None:
    q, k, _ = normal(dtype, tokens, 15, 64).split((9, 3, 3), dim=1)
    positions = torch.arange(tokens) * 5003
    frequencies = 1e4 ** -torch.linspace(0, 1, rotated // 2)
    angles = chosen(table, "rotary_angles", dtype)(positions, frequencies, 0.75)
    for found, right in zip(
        angles, table.reference("rotary_angles")(positions, frequencies, 0.75), strict=True
    ):
        torch.testing.assert_close(found, right, rtol=0, atol=2e-7)
    rotate, reference = chosen(table, "rotary", dtype), table.reference("rotary")
    wide = reference(q.float(), k.float(), *angles)
    for pair in ((q, k), (q.transpose(1, 2).contiguous().transpose(1, 2), k)):
        for found, right in zip(rotate(*pair, *angles), wide, strict=True):
            close(found, right, dtype)


@dtypes
@tokens
@pytest.mark.parametrize("name", ["silu_and_multiply", "gelu_tanh_and_multiply"])
def test_gated_activations(table: OpTable, dtype: torch.dtype, tokens: int, name: str) -> None:
    wide = normal(dtype, tokens, 2 * 96 + 8)
    for x in (wide[:, 3:195], wide[:, :192].contiguous(), normal(dtype, 192, tokens).T):
        right = table.reference(name)(x.double())
        close(chosen(table, name, dtype)(x), right, dtype)


@dtypes
def test_embedding(table: OpTable, dtype: torch.dtype) -> None:
    weight, ids = normal(dtype, 50, 48)[:, :33], torch.tensor([49, 0, 7, 7])
    assert torch.equal(chosen(table, "embedding", dtype)(ids, weight), weight[ids])


def test_other_dtypes_and_devices_are_left_to_others(table: OpTable) -> None:
    for facts in ({"dtype": "float64", "device": "cpu"}, {"dtype": "float32", "device": "other"}):
        assert table.choose("rms_norm", **facts) is table.reference("rms_norm")


KINDS = {
    "greedy": {"temperature": 0.0},
    "random": {},
    "cold": {"temperature": 0.4},
    "few": {"top_k": 3},
    "many": {"top_k": 700, "temperature": 2.0},
    "one": {"top_k": 1},
    "few of a nucleus": {"top_k": 20, "top_p": 0.8},
    "nucleus": {"top_p": 0.9, "temperature": 1.5},
    "narrow nucleus": {"top_p": 1e-9},
    "min-p": {"min_p": 0.02},
    "min-p of one": {"min_p": 1.0},
    "all": {"temperature": 0.8, "top_k": 50, "top_p": 0.95, "min_p": 0.001},
    "penalties": {"repetition_penalty": 1.3, "presence_penalty": 0.5},
    "allowed": {"allowed_token_ids": tuple(range(100, 900))},
}


def admitted(size: int, count: int, table: OpTable | None) -> Sampler:
    sampler = Sampler(size, count, "cpu", table)
    kinds = list(KINDS.values())
    for row in range(count):
        params = SamplingParams(max_tokens=9, **kinds[row % len(kinds)])
        sampler.admit(row, Admission(row, (5, 9), 1, params, 977 * row, ()))
    return sampler


@pytest.mark.parametrize("size", [1000, 1537, 20000])
@pytest.mark.parametrize("ties", [False, True])
def test_the_sampler_gives_the_references_tokens(table: OpTable, size: int, ties: bool) -> None:
    count = 280 if size < 2000 else 56
    logits = normal(torch.float32, count, size) * 3
    logits = logits.round() if ties else logits
    logits[:, 7] = -torch.inf
    logits[17] = -torch.inf
    logits[18, 400] = torch.nan
    logits[19] *= 1e30
    history = torch.zeros(count, 4, dtype=torch.int32)
    rows, lengths = np.arange(count), np.full(count, 2)
    found, right = (
        admitted(size, count, one).sample(logits, rows, history, lengths) for one in (table, None)
    )
    finite = found.highest.isfinite()
    assert torch.equal(finite, right.highest.isfinite())
    assert finite.logical_not().nonzero().flatten().tolist() == [17, 18]
    assert ((found.tokens >= 0) & (found.tokens < size)).all()
    assert torch.equal(found.tokens[finite], right.tokens[finite])
    assert table.chosen[("sample", "cpu-native")] >= 1


def test_rows_need_not_lie_together(table: OpTable) -> None:
    logits = normal(torch.float32, 28, 1300)[:, 100:]
    history = torch.zeros(28, 4, dtype=torch.int32)
    sampler = admitted(1200, 28, table)
    arguments = (np.arange(28), history, np.full(28, 2))
    found = sampler.sample(logits, *arguments).tokens
    assert torch.equal(found, sampler.sample(logits.contiguous(), *arguments).tokens)
    flipped = logits.T.contiguous().T
    assert torch.equal(found, sampler.sample(flipped, *arguments).tokens)
