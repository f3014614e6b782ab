"""Copies whole pages of the cache to others."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

AT_ONCE = 8  # copies on their way


def copy_pages(
    pages: jax.Array, sources_M: jax.Array, targets_M: jax.Array, *, interpret: Any = False
) -> jax.Array:
    """`pages` with page sources[i] also at targets[i]. Where one of them is negative: nothing.

    Targets are distinct and are no sources. Pages are [num_pages, …] of any kind.
    """
    sources_M = jnp.where(targets_M < 0, -1, sources_M).astype(jnp.int32)
    copied: jax.Array = pl.pallas_call(
        _kernel,
        out_shape=jax.ShapeDtypeStruct(pages.shape, pages.dtype),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(1,),
            in_specs=[pl.BlockSpec(memory_space=pl.ANY)],
            out_specs=pl.BlockSpec(memory_space=pl.ANY),
            scratch_shapes=[pltpu.SemaphoreType.DMA((AT_ONCE,))],
        ),
        input_output_aliases={2: 0},
        interpret=interpret,
        name="copy_pages",
    )(sources_M, targets_M.astype(jnp.int32), pages)
    return copied


def _kernel(sources: Any, targets: Any, _: Any, pages: Any, done: Any) -> None:
    count = sources.shape[0]

    def act(pair: Any, *, start: bool) -> None:
        source, target = sources[pair], targets[pair]

        @pl.when(source >= 0)
        def _() -> None:
            semaphore = done.at[lax.rem(pair, AT_ONCE)]
            copy = pltpu.make_async_copy(pages.at[source], pages.at[target], semaphore)
            (copy.start if start else copy.wait)()

    def one(pair: Any, _: None) -> None:
        pl.when(pair >= AT_ONCE)(lambda: act(pair - AT_ONCE, start=False))
        act(pair, start=True)

    lax.fori_loop(0, count, one, None)
    lax.fori_loop(max(0, count - AT_ONCE), count, lambda pair, _: act(pair, start=False), None)
