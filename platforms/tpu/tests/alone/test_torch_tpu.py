"""What is registered with `torch_tpu` traces on shapes alone, as its compiler traces it."""

import os
from importlib.util import find_spec

import pytest

if find_spec("torch_tpu") is None:
    pytest.skip("torch_tpu is not installed", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore")  # torch_tpu's own, of an experimental interface


@pytest.fixture(scope="module")
def device():
    """torch knows of the device; nothing is on it."""
    import torch_tpu  # noqa: F401
    from torch_tpu import _loader

    _loader._init_device("tpu")
    return "tpu"


@pytest.fixture(scope="module")
def chip():
    """Kernels are traced for a kind of chip."""
    import jax
    from jax.experimental import topologies

    devices = topologies.get_topology_desc(platform="tpu", topology_name="v6e:2x2").devices
    return jax.sharding.Mesh(devices[:1], ("chips",))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(("decode", "rows", "requests"), [(True, 8, 8), (False, 64, 4)])
def test_attention_traces(device, chip, decode, rows, requests, dtype):
    import jax
    import torch
    from torch._subclasses import FakeTensorMode

    from engine.compiled import ProgramMaker
    from engine.platform import AttentionSpec, StepMetadata
    from engine_tpu.kernel_ops import TorchTpuAttention

    spec = AttentionSpec(
        num_heads=8,
        num_kv_heads=2,
        head_dim=128,
        block_size=64,
        dtype=dtype,
        kv_dtype=dtype,
        scale=0.1,
        window=100,
    )

    def empty(*shape):
        return torch.empty(*shape, dtype=getattr(torch, dtype), device=device)

    def numbers(*shape, dtype=torch.int32):
        return torch.empty(*shape, dtype=dtype, device=device)

    graphs = []

    def backend(graph, examples):
        graphs.append(graph)
        return graph.forward

    with jax.set_mesh(chip), FakeTensorMode(allow_non_fake_inputs=True):
        attention = TorchTpuAttention(spec, device, ProgramMaker(backend))
        cache = attention.allocate(33)
        assert cache.shape == (33, *attention.kv_layout().shape)
        step = StepMetadata(
            numbers(requests + 1),
            numbers(requests),
            numbers(requests, 4),
            numbers(rows, dtype=torch.int64),
            max_query=1 if decode else rows,
            max_length=256,
            num_decodes=requests if decode else 0,
        )
        q, k, v = empty(rows, 8, 128), empty(rows, 2, 128), empty(rows, 2, 128)
        out, after = attention.forward(q, k, v, cache, attention.plan(step))
        moved = attention.copy_blocks(after, [(1, 2)] * 20)
    assert (out.shape, out.dtype, out.device.type) == (q.shape, q.dtype, device)
    for one in (after, moved):
        assert (one.shape, one.dtype, one.device.type) == (cache.shape, cache.dtype, device)
    assert len(graphs) == 1, "copying is one program"
    assert os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] == "0", "else torch loads it by itself"
