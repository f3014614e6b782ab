"""Decode attention over a flat list of blocks, against plain attention in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_gaudi.flat import flat_attention

SIZE = 8  # tokens a block


def lay_out(lengths, unused, random):
    """A list of blocks in random order: whose each is, and what is seen of it."""
    entries = [
        (row, max(0, min(SIZE, length - start)))
        for row, length in enumerate(lengths)
        for start in range(0, length, SIZE)
    ]
    entries += [(len(lengths), 0)] * unused
    order = torch.randperm(len(entries), generator=random).tolist()
    entries = [entries[i] for i in order]
    groups = torch.tensor([row for row, _ in entries])
    counts = torch.tensor([count for _, count in entries])
    return groups, torch.arange(SIZE) < counts[:, None]


def exact(q, k, v, groups, seen, scale, soft_cap):
    """Each request over the tokens that it sees, in float64."""
    rows = []
    for row, query in enumerate(q.double()):
        mine = seen & (groups == row)[:, None]
        keys, values = (
            one[mine].double().repeat_interleave(len(query) // one.shape[2], 1) for one in (k, v)
        )
        scores = torch.einsum("hd,lhd->hl", query, keys) * scale
        if soft_cap is not None:
            scores = soft_cap * torch.tanh(scores / soft_cap)
        rows.append(torch.einsum("hl,lhd->hd", scores.softmax(-1), values))
    return torch.stack(rows)


def inputs(lengths, unused=0, heads=(8, 2), dtype=torch.float32, seed=0):
    random = torch.Generator().manual_seed(seed)
    groups, seen = lay_out(lengths, unused, random)
    q = torch.randn(len(lengths), heads[0], 16, generator=random).to(dtype)
    k, v = (
        torch.randn(len(groups), SIZE, heads[1], 16, generator=random).to(dtype) for _ in range(2)
    )
    for one in (k, v):
        one[~seen] = float("nan")
    return q, k, v, groups, seen


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    unused=st.integers(0, 4),
    heads=st.sampled_from([(8, 2), (4, 4), (7, 1)]),
    soft_cap=st.sampled_from([None, 2.0]),
    seed=st.integers(0, 99),
)
def test_a_list_in_any_order_gives_what_plain_attention_does(
    lengths, unused, heads, soft_cap, seed
):
    asked = inputs(lengths, unused, heads, seed=seed)
    found = flat_attention(*asked, scale=0.25, soft_cap=soft_cap)
    torch.testing.assert_close(found.double(), exact(*asked, 0.25, soft_cap), rtol=0, atol=2e-5)


def test_half_precision_is_as_good_as_its_rounding():
    asked = inputs([1, 37, 64], 3, dtype=torch.bfloat16)
    found = flat_attention(*asked, scale=0.25)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), exact(*asked, 0.25, None), rtol=0, atol=2e-2)


def test_scores_of_very_different_size_neither_overflow_nor_vanish():
    q, k, v, groups, seen = inputs([20, 20])
    q = q * torch.tensor([300.0, 0.001])[:, None, None]
    found = flat_attention(q, k, v, groups, seen, scale=1.0)
    right = exact(q, k, v, groups, seen, 1.0, None)
    torch.testing.assert_close(found.double(), right, rtol=0, atol=1e-3)


@pytest.mark.parametrize("what", ["query", "key", "value"])
def test_a_request_that_is_not_finite_spoils_itself_alone(what):
    q, k, v, groups, seen = inputs([30, 9, 17], 2)
    sound = flat_attention(q, k, v, groups, seen, scale=0.25)
    block = groups.tolist().index(1)
    if what == "query":
        q[1, 0, 0] = float("nan")
    else:
        {"key": k, "value": v}[what][block, 0] = float("nan")
    found = flat_attention(q, k, v, groups, seen, scale=0.25)
    assert found[1].isnan().any()
    assert torch.equal(found[0], sound[0])
    assert torch.equal(found[2], sound[2])
