"""Every kernel compiled by libtpu for chips that are not here: registers, memory of the core and
aliasing are the compiler's word, not ours. What a kernel computes there is not shown.
"""

import functools
import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from engine.errors import UnsupportedError
from engine_tpu.kernels import attention, tiling
from engine_tpu.kernels.attention import ragged_paged_attention
from engine_tpu.kernels.pages import page_shape
from engine_tpu.kernels.store import store_kv
from engine_tpu.plain import copy_pages

pytest.importorskip("libtpu", reason="libtpu, which compiles for TPUs, is not installed")

TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "tpu7x": "tpu7x:2x2x1"}
NUM_PAGES = 2**14  # more than a core has memory for: a copy of the cache would be seen


@functools.cache
def mesh_of(chip: str, count: int) -> Mesh:
    devices = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[chip]).devices
    return Mesh(np.array(devices[:count]), ("tp",))


def compiled(
    chip: str = "v5e",
    count: int = 1,
    *,
    tokens: int = 32,
    requests: int = 8,
    table: int = 4,
    heads: int = 8,
    kv_heads: int = 4,
    dim: int = 128,
    size: int = 32,
    dtype: str = "bfloat16",
    layers: int = 1,
    copies: bool = False,
    **settings: object,
) -> jax.stages.Compiled:
    """A step of so many layers, heads shared out over the chips."""
    mesh = mesh_of(chip, count)

    def step(pages: Sequence[jax.Array], q, k, v, slots, lengths, tables, starts):
        made = []
        for cache in pages:
            cache = store_kv(cache, k, v, slots)
            q = ragged_paged_attention(q, cache, lengths, tables, starts, scale=0.1, **settings)
            made.append(copy_pages(cache, lengths, starts[1:]) if copies else cache)
        return made, q

    by_heads, by_pages, same = (
        PartitionSpec(None, "tp"),
        PartitionSpec(None, None, "tp"),
        PartitionSpec(),
    )

    def array(shape: tuple[int, ...], dtype: str, spec: PartitionSpec) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=NamedSharding(mesh, spec))

    shape = (NUM_PAGES, *page_shape(kv_heads, dim, size))
    arguments = (
        [array(shape, dtype, by_pages)] * layers,
        array((tokens, heads, dim), dtype, by_heads),
        array((tokens, kv_heads, dim), dtype, by_heads),
        array((tokens, kv_heads, dim), dtype, by_heads),
        array((tokens,), "int32", same),
        array((requests,), "int32", same),
        array((requests, table), "int32", same),
        array((requests + 1,), "int32", same),
    )
    specs = (by_pages, by_heads, by_heads, by_heads, same, same, same, same)
    divided = jax.shard_map(
        step, mesh=mesh, in_specs=specs, out_specs=(by_pages, by_heads), check_vma=False
    )
    with jax.set_mesh(mesh):
        return jax.jit(divided, donate_argnums=0).lower(*arguments).compile()


def kernels(program: jax.stages.Compiled) -> list[str]:
    """The program's calls of kernels."""
    mark = 'custom_call_target="tpu_custom_call"'
    return [line for line in program.as_text().splitlines() if mark in line]


def cache_bytes(*, kv_heads: int = 4, dim: int = 128, size: int = 32, itemsize: int = 2) -> int:
    return NUM_PAGES * int(np.prod(page_shape(kv_heads, dim, size))) * itemsize


def core_memory(program: jax.stages.Compiled) -> list[int]:
    """Bytes that each kernel uses of it, the compiler says."""
    used = r'"used_scoped_memory_configs":\[\{"memory_space":"1","offset":"0","size":"(\d+)"'
    return [int(size) for size in re.findall(used, "".join(kernels(program)))]


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("chip", TOPOLOGIES)
def test_a_step_compiles_for_every_chip_alone_and_for_four_in_place(chip: str, count: int) -> None:
    """Store, prompts, decodes and copies: the cache that goes in is the memory that comes out."""
    program = compiled(chip, count, copies=True)
    assert len(kernels(program)) == 3, "copies are the compiler's own"
    assert 0 < max(core_memory(program)) <= tiling.VMEM_BYTES
    memory = program.memory_analysis()
    assert memory.alias_size_in_bytes == cache_bytes() // count
    assert memory.temp_size_in_bytes < 2**20


@pytest.mark.parametrize(
    "shape",
    [
        {"dim": 64, "size": 16, "window": 40, "soft_cap": 30.0},
        {"dim": 256, "size": 256, "kv_heads": 1, "heads": 7, "dtype": "float32"},
        {"heads": 12, "kv_heads": 12, "size": 64},
    ],
    ids=["head-64-window-cap", "head-256-of-7-float32", "12-key-heads"],
)
def test_a_decode_step_compiles_whatever_the_layer(shape: dict) -> None:
    program = compiled(**{"tokens": 8, "decode": True} | shape)
    assert len(kernels(program)) == 2
    sizes = {name: shape[name] for name in ("kv_heads", "dim", "size") if name in shape}
    itemsize = 4 if shape.get("dtype") == "float32" else 2
    assert program.memory_analysis().alias_size_in_bytes == cache_bytes(**sizes, itemsize=itemsize)


def test_a_step_of_a_large_model_uses_no_more_of_a_cores_memory_than_was_counted() -> None:
    """What `tiling` counts decides how large the pieces are."""
    sizes = {"tokens": 64, "requests": 32}
    used = max(core_memory(compiled(**sizes, heads=32, kv_heads=8, size=64, table=64)))
    chosen = tiling.choose(
        **sizes,
        num_heads=32,
        page=page_shape(8, 128, 64),
        itemsize=2,
        table_pages=64,
        window=None,
        decode=False,
        cores=1,
    )
    assert chosen.vmem_bytes / 4 < used < chosen.vmem_bytes <= tiling.VMEM_BYTES


def test_chips_whose_two_cores_are_one_device_share_out_the_heads() -> None:
    """Half of the heads' pages are in a core's memory at a time."""
    both, alone = (compiled("v5p", cores=cores, tokens=8, decode=True) for cores in (None, 1))
    assert max(core_memory(both)) < 0.75 * max(core_memory(alone))


def test_what_follows_from_the_metadata_is_computed_once_for_all_layers() -> None:
    """A store sorts twice."""
    program = compiled(layers=2, tokens=8, decode=True)
    assert len(kernels(program)) == 4
    assert program.as_text().count(" sort(") == 2


def test_the_largest_tables_that_are_not_refused_fit_in_scalar_memory() -> None:
    largest = {"requests": 128, "tokens": 128, "heads": 1, "kv_heads": 1, "decode": True}
    assert len(kernels(compiled(**largest, table=1688))) == 2
    with pytest.raises(UnsupportedError, match="scalar memory"):
        compiled(**largest, table=1800)


def test_the_compiler_refuses_a_kernel_that_needs_more_than_it_may_have(monkeypatch) -> None:
    """So that compiling at all says that the kernels above are within their memory."""
    choose = attention.choose

    def less(**shape: object) -> object:
        made = choose(**shape)
        return type(made)(**{f: getattr(made, f) for f in made.__slots__} | {"vmem_bytes": 2**16})

    monkeypatch.setattr(attention, "choose", less)
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"(?i)vmem"):
        compiled(tokens=8, decode=True)
