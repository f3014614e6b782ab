"""Names that the shared parts do not know: torch's of the device, its graphs and collectives.

torch calls AMD's GPUs, their graphs and their library of collectives by NVIDIA's names.
"""

from collections.abc import Callable
from typing import Any

import torch

from engine.errors import UnsupportedError
from engine_rocm.memory import own_memory
from engine_triton import collectives
from engine_triton.architecture import Architecture
from engine_triton.device import Device, TorchDevice
from engine_triton.platform import TritonPlatform


class RocmPlatform(TritonPlatform):
    name = "rocm"
    kind = "cuda"
    collectives = "engine_rccl"

    def open(self, index: int) -> Device:
        count = torch.cuda.device_count()
        if index >= count:
            raise UnsupportedError(
                f"there is no GPU rocm:{index}: torch {torch.__version__} sees {count}; name one of"
                f" 0 to {count - 1}, and see HIP_VISIBLE_DEVICES"
                if count
                else f"torch {torch.__version__} sees no GPU; `engine platforms` says why"
            )
        return TorchDevice(self.kind, index, torch.cuda.CUDAGraph)

    def examine(self) -> Architecture:
        try:
            return super().examine()
        except UnsupportedError as error:
            facts = torch.cuda.get_device_properties(self.gpu.name)
            raise UnsupportedError(
                f"{facts.name} is {facts.gcnArchName}, for which the kernels are not made; use"
                f" --device cpu, or another GPU: {error}"
            ) from error

    def own_memory(self) -> Callable[[], int | None]:
        facts: Any = torch.cuda.get_device_properties(self.gpu.name)  # its stub lacks the numbers
        place = f"{facts.pci_domain_id:04x}:{facts.pci_bus_id:02x}:{facts.pci_device_id:02x}.0"
        return own_memory(place)

    def register_collectives(self) -> None:
        if not torch.distributed.is_nccl_available():
            raise UnsupportedError(
                f"torch {torch.__version__} was built without RCCL, by which GPUs share a model;"
                " use --tensor-parallel 1, or a torch from https://download.pytorch.org/whl"
            )
        rccl = torch.distributed.ProcessGroupNCCL
        collectives.register(self.collectives, self.kind, rccl, rccl.Options)
