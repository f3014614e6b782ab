"""Between torch's tensors and jax's arrays."""

from typing import Any

import jax
import ml_dtypes
import numpy as np
import torch
from torch import Tensor

#: torch's 64-bit integers are ids, positions and slots here: 32 bits hold them.
NARROW = {torch.int64: torch.int32, torch.float64: torch.float32}


def jax_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    name = str(NARROW.get(dtype, dtype)).removeprefix("torch.")
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def to_numpy(x: Tensor) -> np.ndarray[Any, Any]:
    """On the host, 64 bits made 32; memory is shared where nothing is converted."""
    x = x.detach().contiguous()
    if x.dtype == torch.bfloat16:
        return x.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return x.to(NARROW.get(x.dtype, x.dtype)).numpy()


def to_torch(array: jax.Array) -> Tensor:
    """On the host; waits for it."""
    found = np.array(array)
    if found.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(found.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(found)
