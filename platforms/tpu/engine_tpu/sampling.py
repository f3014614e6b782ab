"""Tokens are chosen where the logits are: programs over whole buckets of rows.

What a row uses of the filters does not change the program: a filter that is off keeps everything.
The numbers are those of the core's operations `argmax` and `sample`: floors under weights relative
to the most likely token's, top-p by sums of whole units of 2**-40, and a draw in two levels.

Letters: N rows, V vocabulary, C chunks, S tokens of a chunk.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.platform import OpTable
from engine_tpu.arrays import ChipTensor, to_jax, to_torch
from engine_tpu.placement import WHOLE
from engine_tpu.programs import Programs

UNITS = 2.0**40
CHUNK = 512
#: temperature, top_k, top_p, min_p and two uniforms of a row that draws nothing.
IDLE = (1.0, 0, 1.0, 0.0, 0.0, 0.0)


class Sampling:
    """The two operations. `rows`: sizes of buckets; scores are filled up to the next."""

    def __init__(self, programs: Programs, rows: tuple[int, ...]) -> None:
        self._programs = programs
        self._rows = rows
        programs.after_projection = self.prepare

    def register(self, table: OpTable, source: str) -> None:
        for operation in (self.argmax, self.sample):
            table.register(operation.__name__, source=source, priority=10)(operation)

    def prepare(self, shape: tuple[int, ...]) -> None:
        """The programs for logits of this shape, before a step asks for them."""
        for function in (_argmax, _sample):
            self._program(function, *shape)

    def argmax(self, scores_MV: Tensor) -> tuple[Tensor, Tensor]:
        """As the core's: highest float32 [M], ids int64 [M]."""
        array = self._on_chips(scores_MV)
        highest, ids = self._program(_argmax, *array.shape)(array)
        count = len(scores_MV)
        return to_torch(highest)[:count], to_torch(ids)[:count].long()

    def sample(
        self,
        scores_MV: Tensor,
        highest_M: Tensor,
        places_N: NDArray[np.int64],
        temperature_N: NDArray[np.float32],
        top_k_N: NDArray[np.int64],
        top_p_N: NDArray[np.float32],
        min_p_N: NDArray[np.float32],
        uniforms_N2: NDArray[np.float32],
    ) -> Tensor:
        """As the core's: ids int64 [N]. Rows that draw nothing are computed and left out."""
        array = self._on_chips(scores_MV)
        numbers = np.tile(np.array(IDLE, dtype=np.float32), (len(array), 1))
        numbers[places_N] = np.column_stack([temperature_N, top_k_N, top_p_N, min_p_N, uniforms_N2])
        ids = self._program(_sample, *array.shape)(array, numbers)
        return to_torch(ids)[torch.from_numpy(places_N)].long()

    def _on_chips(self, scores_MV: Tensor) -> jax.Array:
        """Where they are already, the bucket's; others are filled up to one and sent."""
        if isinstance(scores_MV, ChipTensor):
            return scores_MV.array
        count, size = scores_MV.shape
        rows = next((most for most in self._rows if most >= count), count)
        whole = np.zeros((rows, size), dtype=np.float32)
        whole[:count] = to_jax(scores_MV)
        sent: jax.Array = jax.device_put(whole, self._programs.placement.sharding(WHOLE))
        return sent

    def _program(self, function: Any, rows: int, size: int) -> Any:
        """Of scores and, for `_sample`, of the rows' numbers."""
        whole = self._programs.placement.sharding(WHOLE)
        shapes = [(rows, size), (rows, len(IDLE))][: 1 + (function is _sample)]
        arrays = [jax.ShapeDtypeStruct(one, jnp.float32, sharding=whole) for one in shapes]

        def make() -> Any:
            with jax.enable_x64(True):  # units are whole numbers of more than 32 bits
                return self._programs.compile(function, arrays, out_shardings=whole)

        return self._programs.shared((function, rows, size), make)


def _argmax(scores_NV: jax.Array) -> tuple[jax.Array, jax.Array]:
    return scores_NV.max(-1), scores_NV.argmax(-1).astype(jnp.int32)


def _sample(scores_NV: jax.Array, numbers_N6: jax.Array) -> jax.Array:
    temperature, k, p, min_p, first, second = (numbers_N6[:, i : i + 1] for i in range(len(IDLE)))
    return _draw(_weigh(scores_NV, temperature, k, p, min_p), first, second)


def _weigh(
    scores_NV: jax.Array, temperature: jax.Array, k: jax.Array, p: jax.Array, min_p: jax.Array
) -> jax.Array:
    """Weights of the tokens that the filters keep, ties with the last one among them."""
    weights_NV = jnp.exp((scores_NV - scores_NV.max(-1, keepdims=True)) / temperature)
    sorted_NV = -jnp.sort(-scores_NV, axis=-1)
    last_N1 = jnp.clip(k.astype(jnp.int32) - 1, 0, scores_NV.shape[1] - 1)
    cutoff_N1 = jnp.where(k > 0, jnp.take_along_axis(sorted_NV, last_N1, axis=-1), -jnp.inf)
    weights_NV = jnp.where(scores_NV < cutoff_N1, 0.0, weights_NV)
    floor_N1 = jnp.maximum(min_p, jnp.where(p < 1, _nucleus(weights_NV, p), 0.0))
    return jnp.where(weights_NV < floor_N1, 0.0, weights_NV)


def _nucleus(weights_NV: jax.Array, p: jax.Array) -> jax.Array:
    """[N, 1]: the smallest weight of the most likely tokens that reach the share `p`."""
    total_N1 = (_chunks(weights_NV).sum(-1) * UNITS).astype(jnp.int64).sum(-1, keepdims=True)
    target_N1 = jnp.maximum((p * total_N1.astype(jnp.float32)).astype(jnp.int64), 1)
    sorted_NV = -jnp.sort(-weights_NV, axis=-1)
    units_NV = (sorted_NV * UNITS).astype(jnp.int64)
    before_NV = units_NV.cumsum(-1) - units_NV
    return jnp.where(before_NV < target_N1, sorted_NV, jnp.inf).min(-1, keepdims=True)


def _draw(weights_NV: jax.Array, first: jax.Array, second: jax.Array) -> jax.Array:
    """A chunk by the first number, a token of it by the second: int32 [N]."""
    chunks_NCS = _chunks(weights_NV)
    chunk_N1 = _pick(chunks_NCS.sum(-1), first)
    inside_NS = jnp.take_along_axis(chunks_NCS, chunk_N1[:, :, None], axis=1)[:, 0]
    ids_N1 = chunk_N1 * CHUNK + _pick(inside_NS, second)
    return jnp.clip(ids_N1, 0, weights_NV.shape[1] - 1)[:, 0].astype(jnp.int32)


def _pick(weights_NS: jax.Array, uniform_N1: jax.Array) -> jax.Array:
    """Index [N, 1] of the first positive weight at which the running sum exceeds its share."""
    running_NS = weights_NS.cumsum(-1)
    beyond_NS = (running_NS > uniform_N1 * running_NS[:, -1:]) & (weights_NS > 0)
    likeliest_N1 = weights_NS.argmax(-1, keepdims=True)
    found_N1 = beyond_NS.any(-1, keepdims=True)
    return jnp.where(found_N1, beyond_NS.argmax(-1, keepdims=True), likeliest_N1)


def _chunks(weights_NV: jax.Array) -> jax.Array:
    """[N, C, S], the last chunk filled up with zeros."""
    missing = -weights_NV.shape[1] % CHUNK
    return jnp.pad(weights_NV, ((0, 0), (0, missing))).reshape(len(weights_NV), -1, CHUNK)
