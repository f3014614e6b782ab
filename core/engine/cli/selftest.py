"""Lets one platform compute something small, and compares it with float64 on the host.

Runs in a process of its own (see `platforms.py`), so that a driver that hangs or crashes is
reported like any other failure. Shape legend: T tokens, H query heads, K key/value heads, D head
dim.
"""

import json
import sys
from typing import TYPE_CHECKING

from engine.batch import Admission, Batch, Slice
from engine.config import resolve
from engine.errors import EngineError, PluginError, UnsupportedError
from engine.params import SamplingParams
from engine.platform import AttentionBackend, AttentionSpec, Platform, Runner, StepMetadata
from engine.plugins import PluginManager

if TYPE_CHECKING:
    import torch
    from torch import Tensor

#: The largest error allowed, as a share of the largest exact value. Wide enough for devices whose
#: float32 products keep ten bits; the conformance kit looks closer.
TOLERANCE = {"float32": 2e-3, "float16": 5e-3, "bfloat16": 3e-2}


def main() -> None:
    """Test the platform that the first argument names; print {"error"} or {"detail"} as JSON."""
    try:
        answer = {"detail": check(sys.argv[1])}
    except EngineError as error:
        answer = {"error": str(error)}
    except Exception as error:  # whatever a platform raises is the answer
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer))


def check(name: str) -> str:
    """What was computed, in words.

    Raises:
        PluginError: a result is wrong. Beside it, whatever the platform raises.
    """
    import os

    plugins = PluginManager()
    spec = plugins.select(name)
    config = resolve({"device": name}, plugins.defaults(spec)).config
    for variable, value in plugins.environment(spec, 0).items():
        os.environ.setdefault(variable, value)
    platform = plugins.create_platform(spec, config, 0)
    try:
        memory = _memory(platform)
        runner = platform.runner()
        if runner is not None:
            return f"{memory}; {_batch(runner, platform.capabilities.block_sizes[0])}"
        dtype = platform.capabilities.dtypes[0]
        return f"{memory}; {_product(platform, dtype)}; {_attention(platform, dtype)}"
    finally:
        platform.close()


def _memory(platform: Platform) -> str:
    seen = platform.memory().snapshot()
    _require(seen.total > 0, f"memory: a total of {seen.total} bytes")
    _require(0 <= seen.free <= seen.total, f"memory: {seen.free} of {seen.total} bytes free")
    return f"{seen.free / 2**30:.1f} of {seen.total / 2**30:.1f} GiB free"


def _batch(runner: Runner, block_size: int) -> str:
    """One request of three tokens through the narrow seam."""
    try:
        num_blocks = runner.load()
        blocks = tuple(range(-(-3 // block_size)))
        _require(num_blocks >= len(blocks), f"runner: room for {num_blocks} KV blocks only")
        params = SamplingParams(temperature=0.0)
        prompt = Admission(1, (1, 2, 3), 3, params, seed=0, stop_ids=())
        batch = Batch(admitted=(prompt,), slices=(Slice(1, 0, 3, samples=True, blocks=blocks),))
        (output,) = runner.execute(batch).result().slices
        _require(output.error is None, f"runner: {output.error}")
        _require(len(output.tokens) >= 1, "runner: a slice that samples brought no token")
        return f"its runner computed a token; {num_blocks} KV blocks"
    finally:
        runner.close()


def _product(platform: Platform, dtype: str) -> str:
    import torch

    generator = torch.Generator().manual_seed(1)
    left, right = (torch.randn(2, 96, 96, generator=generator)).to(getattr(torch, dtype))
    found = (left.to(platform.device) @ right.to(platform.device)).cpu()
    _compare("matmul", dtype, found, left.double() @ right.double())
    return f"matmul in {dtype} is right"


def _attention(platform: Platform, dtype: str) -> str:
    """A prompt that fills one block and begins the next, then one more token."""
    import torch

    size = platform.capabilities.block_sizes[0]
    spec = AttentionSpec(
        num_heads=4,
        num_kv_heads=2,
        head_dim=64,
        block_size=size,
        dtype=dtype,
        kv_dtype=_kv_dtype(platform, dtype),
        scale=64**-0.5,
    )
    backend = platform.attention(spec)
    if (reason := backend.unsupported(spec)) is not None:
        raise UnsupportedError(f"attention: {type(backend).__name__} cannot serve {spec}: {reason}")
    generator = torch.Generator().manual_seed(2)
    length = size + 4
    shape = (spec.num_heads + 2 * spec.num_kv_heads, spec.head_dim)
    qkv = torch.randn(length, *shape, generator=generator).to(getattr(torch, dtype))
    sizes = [spec.num_heads, spec.num_kv_heads, spec.num_kv_heads]
    q_THD, k_TKD, v_TKD = torch.split(qkv, sizes, 1)
    exact = _reference(q_THD, k_TKD, v_TKD, spec.scale)
    cache = backend.allocate(3)
    for start, stop in ((0, length - 1), (length - 1, length)):
        rows = [part[start:stop].to(platform.device) for part in (q_THD, k_TKD, v_TKD)]
        plan = backend.plan(_step(backend, start, stop, platform.device))
        found, cache = backend.forward(rows[0], rows[1], rows[2], cache, plan)
        _compare("paged attention", dtype, found.cpu(), exact[start:stop])
    return "paged attention is right"


def _kv_dtype(platform: Platform, dtype: str) -> str:
    known = platform.capabilities.kv_dtypes
    return dtype if dtype in known else known[0]


def _step(backend: AttentionBackend, start: int, stop: int, device: str) -> StepMetadata:
    """Tokens start:stop of one request whose blocks are 2 and 1."""
    import torch

    size = backend.spec.block_size
    blocks = torch.tensor([2, 1])
    positions = torch.arange(start, stop)
    slots = blocks[positions // size] * size + positions % size
    return StepMetadata(
        query_start=torch.tensor([0, stop - start], dtype=torch.int32, device=device),
        lengths=torch.tensor([stop], dtype=torch.int32, device=device),
        block_table=blocks.to(torch.int32)[None].to(device),
        slots=slots.to(device),
        max_query=stop - start,
        max_length=stop,
        num_decodes=int(stop - start == 1),
    )


def _reference(q_THD: "Tensor", k_TKD: "Tensor", v_TKD: "Tensor", scale: float) -> "Tensor":
    """Causal attention in float64, one dense request."""
    import torch

    group = q_THD.shape[1] // k_TKD.shape[1]
    k_THD, v_THD = (x.double().repeat_interleave(group, 1) for x in (k_TKD, v_TKD))
    scores = torch.einsum("thd,shd->hts", q_THD.double(), k_THD) * scale
    later = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
    return torch.einsum("hts,shd->thd", scores.masked_fill(later, -torch.inf).softmax(-1), v_THD)


def _compare(what: str, dtype: str, found: "torch.Tensor", exact: "torch.Tensor") -> None:
    error = ((found.double() - exact).abs().max() / exact.abs().max()).item()
    _require(  # not a number is not smaller either
        error <= TOLERANCE[dtype],
        f"{what} in {dtype} is wrong: off by {error:.1e} of the largest value,"
        f" {TOLERANCE[dtype]:.0e} is allowed",
    )


def _require(right: bool, message: str) -> None:
    if not right:
        raise PluginError(message)
