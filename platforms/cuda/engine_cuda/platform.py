"""Names that the shared parts do not know: torch's of the device, its graphs and collectives."""

from collections.abc import Callable

import torch

from engine.errors import UnsupportedError
from engine_cuda.memory import own_memory
from engine_triton import collectives
from engine_triton.architecture import Architecture
from engine_triton.device import Device, TorchDevice
from engine_triton.platform import TritonPlatform

#: Compute capability of the first GPUs that the kernels are compiled and proved for: Ampere.
OLDEST = (8, 0)


class CudaPlatform(TritonPlatform):
    name = "cuda"
    kind = "cuda"
    collectives = "engine_nccl"

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
