"""Names that the shared parts do not know: torch's of the device, its graphs and collectives; and
FlashAttention-3, where it is asked for."""

from collections.abc import Callable, Sequence

import torch

from engine.config import DeviceChoice, EngineConfig
from engine.errors import UnsupportedError
from engine_cuda import flash, words
from engine_cuda.memory import own_memory
from engine_triton import collectives
from engine_triton.architecture import Architecture
from engine_triton.attention.backend import PagedAttention
from engine_triton.attention.paged import PagedCache
from engine_triton.device import Device, TorchDevice
from engine_triton.platform import TritonPlatform

#: Compute capability of the first GPUs that the kernels are compiled and proved for: Ampere.
OLDEST = (8, 0)


class CudaPlatform(TritonPlatform):
    name = "cuda"
    kind = "cuda"
    collectives = "engine_nccl"

    def __init__(self, config: EngineConfig, rank: int = 0) -> None:
        super().__init__(config, rank)
        asked = words.attention(DeviceChoice.parse(config.device).words)
        self.attention_backends = attention_backends(asked, self.architecture)

    def open(self, index: int) -> Device:
        count = torch.cuda.device_count()
        if index >= count:
            raise UnsupportedError(
                f"there is no GPU cuda:{index}: torch {torch.__version__} sees {count}; name one of"
                f" 0 to {count - 1}, and see CUDA_VISIBLE_DEVICES"
                if count
                else f"torch {torch.__version__} sees no GPU; `engine platforms` says why"
            )
        return TorchDevice(self.kind, index, torch.cuda.CUDAGraph)

    def examine(self) -> Architecture:
        facts = torch.cuda.get_device_properties(self.gpu.name)
        if (facts.major, facts.minor) < OLDEST:
            raise UnsupportedError(
                f"{facts.name} has compute capability {facts.major}.{facts.minor}, and the kernels"
                f" need {OLDEST[0]}.{OLDEST[1]} or newer (Ampere); use --device cpu, or another GPU"
            )
        return super().examine()

    def own_memory(self) -> Callable[[], int | None]:
        return own_memory(f"GPU-{torch.cuda.get_device_properties(self.gpu.name).uuid}")

    def register_collectives(self) -> None:
        if not torch.distributed.is_nccl_available():
            raise UnsupportedError(
                f"torch {torch.__version__} was built without NCCL, by which GPUs share a model;"
                " use --tensor-parallel 1, or a torch from https://download.pytorch.org/whl"
            )
        nccl = torch.distributed.ProcessGroupNCCL
        collectives.register(self.collectives, self.kind, nccl, nccl.Options)


def attention_backends(asked: str, architecture: Architecture) -> Sequence[type[PagedCache]]:
    """Best first. FlashAttention-3 goes first where it is asked for: nobody has measured it beside
    the kernels of this repository, which also serve the layers that it does not.

    Raises:
        UnsupportedError: it is asked for, and cannot be used here.
    """
    why = flash.unavailable(architecture)
    if asked == "flash3":
        if why is not None:
            raise UnsupportedError(f"{why}; leave out attention=flash3")
        flash.loaded()
        return (flash.FlashAttention3, PagedAttention)
    return (PagedAttention, flash.FlashAttention3 if why is None else flash.refused(why))
