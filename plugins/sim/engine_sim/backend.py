"""Makes the device known to torch as "sim": `torch.empty(2, device="sim:1")`, `torch.sim`."""

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.library import Library
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from engine_sim.chip import chip
from engine_sim.tensor import check_dtype, dispatch
from engine_sim.words import DEVICES

#: Operations that make a tensor out of numbers. Those with `size` first are looked at before they
#: run, so that what does not fit the device is not tried on the host.
_BY_SIZE = ("empty", "empty_strided", "full", "ones", "rand", "randn", "zeros")
_OTHERS = ("arange", "eye", "linspace", "randint", "randperm", "scalar_tensor", "triu_indices")


@cache
def register() -> Library:
    """Once for the process; gives back what keeps the operations registered."""
    _setup_privateuseone_for_python_backend("sim", backend_module=_Module())
    library = Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    implement: Callable[..., None] = library.impl
    for name in (*_BY_SIZE, *_OTHERS):
        packet = getattr(torch.ops.aten, name)
        for overload in packet.overloads():
            func = getattr(packet, overload)
            if _makes_from_numbers(func):
                ending = "" if overload == "default" else f".{overload}"
                implement(name + ending, _factory(func, name in _BY_SIZE), "PrivateUse1")
    implement("_copy_from", _copy_from, "PrivateUse1")
    return library


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    """How torch copies where it does not ask the tensors themselves."""
    copied: Tensor = dispatch(torch.ops.aten.copy_.default, (target, source, non_blocking), {})
    return copied


def _makes_from_numbers(func: OpOverload) -> bool:
    arguments = func._schema.arguments
    kinds = " ".join(str(one.type) for one in arguments)
    foreign = any(word in kinds for word in ("Tensor", "Generator", "Dimname"))
    return not foreign and any(one.name == "device" for one in arguments)


def _factory(func: OpOverload, by_size: bool) -> Callable[..., Tensor]:
    def make(*args: Any, **kwargs: Any) -> Tensor:
        device = torch.device("sim", (kwargs.get("device") or torch.device("sim", 0)).index or 0)
        if by_size:
            _check(args[0], kwargs.get("dtype"), device.index)
        result: Tensor = dispatch(func, args, {**kwargs, "device": device, "pin_memory": None})
        return result

    return make


def _check(size: Sequence[int], dtype: torch.dtype | None, index: int) -> None:
    kind = dtype or torch.get_default_dtype()
    check_dtype(kind, chip(index))
    chip(index).books.check(math.prod(size) * kind.itemsize)


class _Module:
    """What torch asks of a device's module, and what people look for in it."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def _is_in_bad_fork(self) -> bool:
        return False

    def device_count(self) -> int:
        return DEVICES

    def current_device(self) -> int:
        return 0

    def manual_seed_all(self, seed: int) -> None:
        """Random numbers come from the host's generator."""

    def synchronize(self, device: int = 0) -> None:
        chip(device).wait("synchronize")

    def memory_allocated(self, device: int = 0) -> int:
        return chip(device).books.used

    def max_memory_allocated(self, device: int = 0) -> int:
        return chip(device).books.peak

    def mem_get_info(self, device: int = 0) -> tuple[int, int]:
        """Free and total bytes."""
        return chip(device).books.free, chip(device).books.limit
