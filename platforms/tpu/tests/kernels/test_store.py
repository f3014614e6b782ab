"""What writes to the cache, in Pallas's interpreter: exact, and nothing else is touched."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from engine.errors import UnsupportedError
from engine_tpu import plain
from engine_tpu.kernels.pages import page_shape
from engine_tpu.kernels.store import store_kv

QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
WATCHED = pltpu.InterpretParams(detect_races=True)

#: Of (rows, length), as requests of a step: each stores its last rows.
STEPS = {
    "decode": [(1, 1), (1, 16), (1, 17), (1, 33), (1, 64), (1, 65)],
    "prompts": [(5, 5), (16, 16), (17, 17), (33, 33)],
    "chunks": [(70, 130), (1, 16), (40, 47)],
    "whole": [(128, 128)],
    "nothing": [],
}


def slots_of(requests: list[tuple[int, int]], size: int, num_blocks: int, tokens: int) -> list[int]:
    """Blocks in random order; -1 for what is left of the tokens."""
    free = list(np.random.default_rng(len(requests)).permutation(num_blocks))
    slots: list[int] = []
    for rows, length in requests:
        blocks = [free.pop() for _ in range(-(-length // size))]
        slots += [int(blocks[i // size]) * size + i % size for i in range(length - rows, length)]
    return slots + [-1] * (tokens - len(slots))


def stored(pages: np.ndarray, k: np.ndarray, v: np.ndarray, slots: list[int]) -> np.ndarray:
    """Token by token, as the package's docstring says."""
    pages, size, dim = pages.copy(), pages.shape[3], k.shape[-1]
    for token, slot in enumerate(slots):
        if slot < 0:
            continue
        row = pages[slot // size, :, :, slot % size]
        row[...] = 0
        row[0, :, :dim] = k[token]
        at = 64 if pages.shape[1] == 1 else 0
        row[-1, :, at : at + dim] = v[token]
    return pages


def normal(shape: tuple[int, ...], dtype: str, seed: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


@pytest.mark.parametrize(
    ("dtype", "heads", "dim", "size"),
    [("float32", 2, 64, 16), ("bfloat16", 3, 80, 64)],
)
def test_every_token_lands_in_its_slot_and_nothing_else_changes(dtype, heads, dim, size) -> None:
    tokens, num_blocks = 128, 20
    write = jax.jit(functools.partial(store_kv, interpret=True), compiler_options=QUICKLY)
    old = normal((num_blocks, *page_shape(heads, dim, size)), dtype, 1).at[::3].set(jnp.nan)
    for name, requests in STEPS.items():
        slots = slots_of(requests, size, num_blocks, tokens)
        k, v = (normal((tokens, heads, dim), dtype, seed) for seed in (2, 3))
        padding = jnp.asarray(slots)[:, None, None] < 0
        k, v = (jnp.where(padding, jnp.inf, x).astype(dtype) for x in (k, v))
        expected = stored(*(np.asarray(x, np.float64) for x in (old, k, v)), slots)
        got = np.asarray(write(old, k, v, jnp.asarray(slots)), np.float64)
        np.testing.assert_array_equal(got, expected, err_msg=name)


def test_long_prompts_are_written_in_long_strips_that_do_not_race(capfd) -> None:
    tokens, size = 520, 128
    slots = slots_of([(1, 300), (400, 450), (70, 70), (33, 140)], size, 12, tokens)
    pages = normal((12, *page_shape(1, 128, size)), "float32", 1)
    k, v = (normal((tokens, 1, 128), "float32", seed) for seed in (2, 3))
    write = jax.jit(functools.partial(store_kv, interpret=WATCHED), compiler_options=QUICKLY)
    got = write(pages, k, v, jnp.asarray(slots))
    np.testing.assert_array_equal(got, stored(*map(np.asarray, (pages, k, v)), slots))
    assert "RACE" not in "".join(capfd.readouterr())


def test_pages_are_copied_whole_and_padding_copies_nothing() -> None:
    pages = normal((24, 2, 1, 8, 128), "float32", 1)
    pairs = [(3, 10), (-1, 2), (5, 12), (7, 13), (9, -1), (0, 16), (1, 17), (2, 18), (4, 19)]
    pairs += [(3, 20), (8, 21), (11, 22), (-1, -1)]
    sources, targets = jnp.asarray(pairs).T
    got = jax.jit(plain.copy_pages)(pages, sources, targets)
    expected = np.array(pages)
    for source, target in pairs:
        if source >= 0 and target >= 0:
            expected[target] = expected[source]
    np.testing.assert_array_equal(got, expected)


def test_arrays_that_do_not_belong_together_are_refused() -> None:
    pages = jnp.zeros((4, *page_shape(2, 128, 16)))
    k, slots = jnp.zeros((8, 2, 128)), jnp.zeros(8, jnp.int32)
    for wrong in (k[:, :1], k[..., :64], k.astype(jnp.bfloat16)):
        with pytest.raises(UnsupportedError, match="do not go to"):
            store_kv(pages, wrong, wrong, slots)
