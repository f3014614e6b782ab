"""Where the numbers are taken: the device, its software, and what the engine makes of them."""

from collections.abc import Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version

import torch

from accelerator.job import Job, Measure, Parts
from accelerator.records import Check, Fact, Record

PACKAGES = (
    "engine",
    "torch",
    "triton",
    "transformers",
    "vllm",
    "flash-attn",
    "flash-attn-3",
    "flashinfer-python",
)


def measures(job: Job) -> list[Measure]:
    return [
        Measure("device", partial(device, job), estimate_s=0),
        Measure("software", software, estimate_s=0),
        Measure("platform", partial(platform, job), estimate_s=0),
    ]


def device(job: Job) -> Iterator[Record]:
    if not job.on_gpu:
        yield Fact("device", "the host's processor, to rehearse: the numbers mean nothing")
        return
    properties = torch.cuda.get_device_properties(job.device)
    yield Fact("device", properties.name)
    yield Fact("processors of the device", float(properties.multi_processor_count))
    free, total = torch.cuda.mem_get_info(job.device)
    yield Fact("memory, free at the start", f"{free / 1e9:.1f} of {total / 1e9:.1f} GB")
    yield Fact("capability", ".".join(map(str, torch.cuda.get_device_capability(job.device))))


def software() -> Iterator[Record]:
    yield Fact("torch is built for", str(torch.version.cuda or torch.version.hip or "processors"))
    for name in PACKAGES:
        try:
            yield Fact(name, version(name))
        except PackageNotFoundError:
            yield Fact(name, "not installed")


def platform(job: Job) -> Iterator[Record]:
    """Which of the engine's platforms is measured, and whether it uses the device."""
    chosen = Parts(job).platform
    capabilities = chosen.capabilities
    yield Fact("platform", f"{chosen.name}, {chosen.device}")
    yield Fact("block sizes", ", ".join(map(str, capabilities.block_sizes)))
    yield Fact("kinds of KV", ", ".join(capabilities.kv_dtypes))
    yield Fact("quantization", ", ".join(sorted(capabilities.quantization)) or "none")
    uses = torch.device(chosen.device).type == torch.device(job.device).type
    yield Check("the engine uses the device", uses, f"{chosen.device} for {job.device}")
