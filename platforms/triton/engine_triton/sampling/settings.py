"""What the host knows of each row, sent to the device in one copy."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def pack(
    whole: Sequence[NDArray[np.int64]], numbers: Sequence[NDArray[np.float32]], device: torch.device
) -> Tensor:
    """int32 [settings, rows]: whole numbers below 2**31, then the bits of float32 numbers.

    From memory that the device reads by itself: the host goes on.
    """
    bits = np.stack(numbers).astype(np.float32, copy=False).view(np.int32)
    on_host = torch.from_numpy(np.concatenate((np.stack(whole).astype(np.int32), bits)))
    if device.type == "cpu":
        return on_host
    return on_host.pin_memory().to(device, non_blocking=True)
