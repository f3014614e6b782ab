"""From the host to the device, without a wait."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def send(array: NDArray[np.generic], device: str | torch.device, *, pinned: bool = False) -> Tensor:
    """A copy of `array` on the device. `pinned`: staged in memory that the device reads by itself,
    so that the host goes on; torch keeps such memory until the copy is done."""
    on_host = torch.from_numpy(array)
    return (on_host.pin_memory() if pinned else on_host).to(device, non_blocking=True)
