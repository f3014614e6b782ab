"""The attention kernel against float64, in Pallas's interpreter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import ragged_steps
from jax.experimental.pallas import tpu as pltpu
from ragged_steps import Heads, Step

from engine.errors import UnsupportedError
from engine_tpu.kernels import tiling
from engine_tpu.kernels.attention import ragged_paged_attention, unsupported

#: Compiled for the host as little as possible: most of a test's time is the compiler's.
QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
TOKENS, ROOM, CONTEXT = 96, 8, 320  # of a step
F32, BF16 = np.dtype("float32"), np.dtype(jnp.bfloat16)
TOLERANCES = {F32: 2e-6, BF16: 1e-2}  # of the largest right answer

STEPS = {
    "decode": [(1, 1), (1, 15), (1, 16), (1, 17), (1, 255), (1, 257)],
    "prompts": [(1, 1), (15, 15), (16, 16), (17, 17), (40, 40), (3, 3)],
    "chunks": [(70, 257), (26, 90)],
    "mixed": [(1, 17), (1, 135), (50, 50), (20, 255), (1, 40), (5, 16)],
    "one-row": [(1, 15)],
    "nothing": [],
}


def any_step(seed: int) -> list[tuple[int, int]]:
    """Up to as many requests and rows as there is room for."""
    random = np.random.default_rng(seed)
    cuts = np.sort(random.integers(1, TOKENS, random.integers(1, ROOM + 1)))
    rows = [int(count) for count in np.diff(cuts, prepend=0) if count]
    return [(count, count + int(random.integers(0, 200))) for count in rows]


STEPS |= {f"random-{seed}": any_step(seed) for seed in range(6)}

CASES = {
    "own-keys-and-a-window-of-one": Heads(
        num_heads=2, num_kv_heads=2, head_dim=32, block_size=16, rounding=F32, window=1
    ),
    "4-share": Heads(num_heads=8, num_kv_heads=2, head_dim=128, block_size=64, rounding=BF16),
    "7-share-and-a-window": Heads(
        num_heads=7, num_kv_heads=1, head_dim=128, block_size=16, rounding=F32, window=40
    ),
    "8-share-and-a-cap": Heads(
        num_heads=8, num_kv_heads=1, head_dim=256, block_size=256, rounding=BF16, soft_cap=2.0
    ),
}


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch) -> None:
    """A context is several groups of pages, and a step several blocks of queries."""
    monkeypatch.setattr(tiling, "GROUP_TOKENS", 64)
    monkeypatch.setattr(tiling, "BLOCK_ROWS", 128)


def blocks_of(heads: Heads) -> int:
    """Of the cache: a few more than any step has, which stay NaN."""
    size = heads.block_size
    return 3 + max(sum(-(-length // size) for _, length in step) for step in STEPS.values())


def pages_of(heads: Heads, step: Step) -> np.ndarray:
    """As the package's docstring says, and NaN wherever nobody wrote."""
    size, dim = heads.block_size, heads.head_dim
    lanes = -(-dim // 128) * 128
    parts = 1 if dim <= 64 else 2
    pages = np.full((blocks_of(heads), parts, heads.num_kv_heads, size, lanes), np.nan)
    for number, (keys, values) in enumerate(zip(step.k_NCKD, step.v_NCKD, strict=True)):
        for place in range(len(keys)):
            page = pages[step.block_table_NB[number, place // size], :, :, place % size]
            page[...] = 0
            page[0, :, :dim] = keys[place]
            at = 64 if parts == 1 else 0
            page[-1, :, at : at + dim] = values[place]
    return pages


def compiled(heads: Heads, decode: bool, cores=1, interpret=True):
    def attend(*arrays: jax.Array) -> jax.Array:
        return ragged_paged_attention(
            *arrays,
            scale=heads.scale,
            window=heads.window,
            soft_cap=heads.soft_cap,
            decode=decode,
            cores=cores,
            interpret=interpret,
        )

    return jax.jit(attend, compiler_options=QUICKLY)


def arrays_of(heads: Heads, step: Step) -> tuple[jax.Array, ...]:
    return (
        jnp.asarray(step.q_THD, heads.rounding),
        jnp.asarray(pages_of(heads, step), heads.rounding),
        *map(jnp.asarray, (step.lengths_N, step.block_table_NB, step.query_start_N1)),
    )


def step_of(heads: Heads, requests: list[tuple[int, int]], tokens=TOKENS, room=ROOM) -> Step:
    return ragged_steps.make(
        heads,
        requests,
        tokens=tokens,
        room=room,
        table=-(-CONTEXT // heads.block_size),
        num_blocks=blocks_of(heads),
        seed=len(requests),
    )


def error(heads: Heads, step: Step, out: jax.Array) -> float:
    """The largest, over the largest right answer; rows that are padding must be 0."""
    difference = np.asarray(out, np.float64) - step.expected_THD
    assert out.dtype == heads.rounding
    return float(np.abs(difference).max() / (np.abs(step.expected_THD).max() or 1))


@pytest.mark.parametrize("name", CASES)
def test_a_ragged_step_is_exact_whatever_it_holds(name: str) -> None:
    heads = CASES[name]
    attend = compiled(heads, decode=False)
    errors = {}
    for kind, requests in STEPS.items():
        step = step_of(heads, requests)
        errors[kind] = error(heads, step, attend(*arrays_of(heads, step)))
    assert max(errors.values()) <= TOLERANCES[heads.rounding], errors


def test_a_decode_step_needs_only_one_kernel() -> None:
    heads = CASES["4-share"]
    requests = STEPS["decode"]
    step = step_of(heads, requests, tokens=len(requests), room=len(requests))
    attend, (q, pages, lengths, *rest) = compiled(heads, decode=True), arrays_of(heads, step)
    assert error(heads, step, attend(q, pages, lengths, *rest)) <= TOLERANCES[heads.rounding]
    nobody = attend(q, pages, lengths.at[2].set(0), *rest)[2]
    np.testing.assert_array_equal(nobody, 0)


def test_many_heads_and_pieces_of_the_usual_size_are_exact(monkeypatch) -> None:
    """9 key/value heads: more than are computed side by side."""
    monkeypatch.undo()
    heads = Heads(num_heads=9, num_kv_heads=9, head_dim=64, block_size=64, rounding=F32)
    requests = STEPS["decode"]
    step = step_of(heads, requests, tokens=len(requests), room=len(requests))
    out = compiled(heads, decode=True)(*arrays_of(heads, step))
    assert error(heads, step, out) <= TOLERANCES[F32]


def test_no_copy_races_with_a_computation(capfd) -> None:
    """The interpreter of devices delays every copy to where it is waited for, fills memory with NaN
    before, and watches who reads and writes what. Two cores share out the heads."""
    heads = Heads(
        num_heads=4,
        num_kv_heads=2,
        head_dim=80,
        block_size=32,
        rounding=F32,
        window=70,
        soft_cap=1.0,
    )
    step = step_of(heads, STEPS["mixed"])
    watched = pltpu.InterpretParams(detect_races=True)
    out = compiled(heads, decode=False, cores=2, interpret=watched)(*arrays_of(heads, step))
    assert error(heads, step, out) <= TOLERANCES[F32]
    assert "RACE" not in "".join(capfd.readouterr())


def test_what_the_kernels_do_not_serve_is_said_in_words() -> None:
    fine = {"num_heads": 8, "num_kv_heads": 2, "head_dim": 128, "page_size": 16}
    assert unsupported(**fine, dtype="bfloat16") is None
    assert "not in float16" in str(unsupported(**fine, dtype="float16"))
    assert "not 8" in str(unsupported(**fine | {"page_size": 8}, dtype="bfloat16"))
    assert "not 512" in str(unsupported(**fine | {"page_size": 512}, dtype="float32"))
    assert "share out" in str(unsupported(**fine | {"num_kv_heads": 3}, dtype="float32"))
    assert "256 dimensions" in str(unsupported(**fine | {"head_dim": 512}, dtype="float32"))


def refused(tokens=8, room=8, table=8, heads=8, dim=128, size=64, **changes) -> str:
    shapes = {
        "q": jax.ShapeDtypeStruct((tokens, heads, dim), jnp.float32),
        "pages": jax.ShapeDtypeStruct((9, 2, heads, size, 128), jnp.float32),
        "lengths": jax.ShapeDtypeStruct((room,), jnp.int32),
        "table": jax.ShapeDtypeStruct((room, table), jnp.int32),
        "starts": jax.ShapeDtypeStruct((room + 1,), jnp.int32),
    } | changes
    with pytest.raises(UnsupportedError) as raised:
        jax.eval_shape(
            lambda *arrays: ragged_paged_attention(*arrays, scale=1.0, decode=True),
            *shapes.values(),
        )
    return str(raised.value)


def test_steps_that_a_core_has_no_memory_for_are_refused_with_the_way_out() -> None:
    assert "fewer requests or a shorter context" in refused(tokens=256, room=256, table=1024)
    assert "smaller block size or more devices" in refused(heads=128, size=256)


def test_arrays_that_do_not_belong_together_are_refused() -> None:
    assert "would be" in refused(pages=jax.ShapeDtypeStruct((9, 1, 8, 64, 128), jnp.float32))
    assert "would be" in refused(pages=jax.ShapeDtypeStruct((9, 2, 8, 64, 128), jnp.bfloat16))
    assert "not 8 for 4" in refused(room=4)
