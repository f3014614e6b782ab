"""How near a result has to be to the right one: ‖out - right‖ / ‖right‖."""

import torch
from torch import Tensor

from accelerator.job import Job
from accelerator.records import Check

ROUNDING = {"float32": 1e-5, "bfloat16": 1e-2, "float16": 2e-3}
#: Of weights or of the cache, to so many bits.
COARSE = {"int8": 0.03, "fp8": 0.06, "int4": 0.18, "fp8_e4m3": 0.06, "fp8_e5m2": 0.12}


def normal(job: Job, dtype: str, *shape: int) -> Tensor:
    return torch.randn(shape, device=job.device).to(getattr(torch, dtype))


def near(name: str, found: Tensor, right: Tensor, allowed: float) -> Check:
    off = (found.double() - right).norm() / right.norm()
    error = float(off)
    return Check(name, error <= allowed, f"error {error:.2g}, allowed {allowed:.2g}")


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    wide = x.double()
    return wide * (wide.square().mean(-1, keepdim=True) + epsilon).rsqrt() * weight.double()


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.double().chunk(2, -1)
    c, s = cos[:, None], sin[:, None]
    return torch.cat((a * c - b * s, b * c + a * s), -1)
