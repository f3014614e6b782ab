"""Both Triton platforms' own code on tensors of the host, their kernels by Triton's interpreter.

What only a GPU can show is left out: its driver, its memory (that of the process), its collectives
(gloo). Its graphs are replaced by recorded work, which is as strict. A process that makes such a
platform has TRITON_INTERPRET=1 in its environment before it imports triton.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from engine.config import EngineConfig
from engine.platform import Availability, Platform, PlatformSpec, hookimpl


@hookimpl
def engine_platforms() -> Sequence[PlatformSpec]:
    return [
        PlatformSpec(
            name="cuda_on_cpu",
            api=(1, 4),
            probe=probe,
            create=create_cuda,
            defaults=defaults,
            environment=environment,
        ),
        PlatformSpec(
            name="rocm_on_cpu",
            api=(1, 4),
            probe=probe,
            create=create_rocm,
            defaults=defaults,
            environment=environment,
        ),
    ]


def spec(name: str) -> PlatformSpec:
    return next(one for one in engine_platforms() if one.name == name)


def probe() -> Availability:
    return Availability(2, "the platform's code on CPU tensors, kernels interpreted")


def environment(rank: int) -> Mapping[str, str]:
    return {"TRITON_INTERPRET": "1"}


def defaults() -> Mapping[str, Any]:
    """Few requests and short steps: the interpreter takes milliseconds for each program."""
    return {"overlap": True, "max_requests": 4, "max_batch_tokens": 256}


def create_cuda(config: EngineConfig, rank: int) -> Platform:
    from host_gpu import on_host

    from engine_cuda.platform import CudaPlatform

    return on_host(CudaPlatform, "cuda_on_cpu")(config, rank)


def create_rocm(config: EngineConfig, rank: int) -> Platform:
    from host_gpu import on_host

    from engine_rocm.platform import RocmPlatform

    return on_host(RocmPlatform, "rocm_on_cpu")(config, rank)
