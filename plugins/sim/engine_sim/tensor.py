"""Tensors of the device, and the one function that every operation on them passes through.

A tensor's numbers lie in the host's memory, in a tensor of torch's CPU device that only this module
and the device's own kernels touch.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from engine_sim.chip import Chip, chip
from engine_sim.errors import DtypeError, MixedDevicesError, ProgramError, SimError
from engine_sim.memory import Block
from engine_sim.operations import Cost, Operation, learn, sign

DTYPES = (
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
)

_HOST = torch.device("cpu")
_SAME_KIND = torch.ops.aten._has_compatible_shallow_copy_type.default


class SimTensor(Tensor):
    """`data_on_host` are its numbers, `block` its memory in the device's books."""

    data_on_host: Tensor
    block: Block
    chip: Chip

    @staticmethod
    def __new__(cls, on_host: Tensor, chip: Chip, block: Block) -> "SimTensor":
        made = Tensor._make_wrapper_subclass(
            cls,
            on_host.size(),
            strides=on_host.stride(),
            storage_offset=on_host.storage_offset(),
            dtype=on_host.dtype,
            device=_torch_device(chip.index),
        )
        made.data_on_host = on_host
        made.chip = chip
        made.block = block
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: OpOverload,
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return dispatch(func, args, kwargs or {})

    def tolist(self) -> Any:
        """torch's own refuses every subclass."""
        return self.cpu().tolist()

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"{self.data_on_host!r} on {self.chip.name}"


@cache
def _torch_device(index: int) -> torch.device:
    return torch.device("sim", index)


class _Call:
    """The arguments of one operation, as the host sees them, and whose they are."""

    def __init__(self) -> None:
        self.chip: Chip | None = None  # of the tensors
        self.target: torch.device | None = None  # the argument `device`
        self.tensors: dict[int, SimTensor] = {}  # by id of their data on the host
        self.others: list[Tensor] = []  # tensors that live elsewhere
        self.allocated = False  # for a result

    def unpack(self, value: Any) -> Any:
        if isinstance(value, SimTensor):
            if self.chip is None:
                self.chip = value.chip
            elif self.chip is not value.chip:
                self.others.append(value)
            self.tensors[id(value.data_on_host)] = value
            return value.data_on_host
        if isinstance(value, Tensor):
            self.others.append(value)
        elif isinstance(value, list | tuple):
            return [self.unpack(one) for one in value]
        elif isinstance(value, torch.device):
            self.target = value
            return _HOST if value.type == "sim" else value
        return value


_known: dict[OpOverload, Operation] = {}  # what was learned so far
_costs: dict[OpOverload, Cost] = {}


def set_cost(func: OpOverload, cost: Cost) -> None:
    """For an operation of the device's own: what it moves and does."""
    _costs[func] = cost
    _known.pop(func, None)


def dispatch(func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Run one operation on the device that its tensors live on, or that it is asked to fill."""
    if func is _SAME_KIND:
        return False
    operation = _known.get(func)
    if operation is None:
        operation = _known[func] = learn(func, _costs)
    if operation.decomposes and torch.is_inference_mode_enabled():
        # Out of inference mode this was done before.
        result = func.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
    call = _Call()
    host_args = tuple([call.unpack(one) for one in args])
    host_kwargs = {name: call.unpack(value) for name, value in kwargs.items()}
    if operation.is_copy and _moves(call, kwargs):
        return _move(operation, func, call, host_args, host_kwargs)
    device = _device(operation, call)
    _admit(operation, device, host_args, host_kwargs)
    return _finish(operation, device, call, host_args, func(*host_args, **host_kwargs))


def wrap(on_host: Tensor, device: Chip) -> SimTensor:
    """A tensor of the device's that takes over this one, as a fresh allocation.

    Raises:
        DtypeError: the device has no such dtype.
        OutOfMemoryError: it does not fit.
    """
    check_dtype(on_host.dtype, device)
    storage = on_host.untyped_storage()
    return SimTensor(on_host, device, device.books.take(storage.nbytes(), storage.data_ptr()))


def check_dtype(dtype: torch.dtype, device: Chip) -> None:
    if dtype not in DTYPES:
        names = ", ".join(str(one).removeprefix("torch.") for one in DTYPES)
        raise DtypeError(f"{device.name} has no {dtype}; it has {names}")


def _device(operation: Operation, call: _Call) -> Chip:
    """Where it runs: where all of its tensors are."""
    if call.chip is None:
        assert call.target is not None, f"{operation.name} names no device"
        return chip(call.target.index or 0)
    for other in call.others:
        if other.dim() or isinstance(other, SimTensor):  # a number of the host's goes anywhere
            raise MixedDevicesError(
                f"Expected all tensors to be on the same device, but found {call.chip.name} and"
                f" {other.device} ({operation.name})"
            )
    return call.chip


def _admit(
    operation: Operation, device: Chip, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> None:
    """Count an operation that is about to run on the device.

    Raises:
        SynchronizationError: it waits, and must not.
        DeviceLostError: it waits, for a device that is lost.
        ProgramError: it is not in the program that runs.
    """
    counts = device.counts
    counts.operations += 1
    counts.by_name[operation.name] += 1
    if operation.may_wait and operation.waits(args):
        device.wait(operation.name)
    if device.recording is not None:
        device.recording.signatures.add(sign(operation, args, kwargs))
    elif device.replaying is not None:
        signature = sign(operation, args, kwargs)
        if signature not in device.replaying.signatures:
            raise ProgramError(
                f"{device.name}: {operation.name}{signature[1]} is not in the program of this"
                f" step's shape, which has {len(device.replaying)} operations"
            )


def _finish(
    operation: Operation, device: Chip, call: _Call, args: tuple[Any, ...], result: Any
) -> Any:
    """The results as tensors of the device's, in its books and on its clock."""
    given = _give(operation, device, call, result)
    if operation.writes or call.allocated:
        dtype = next((one.dtype for one in call.tensors.values()), torch.float32)
        device.clock.operate(*operation.cost(args, result), str(dtype).removeprefix("torch."))
    return given


def _give(operation: Operation, device: Chip, call: _Call, value: Any) -> Any:
    if isinstance(value, Tensor):
        if operation.writes and (same := call.tensors.get(id(value))) is not None:
            return _unchanged(operation, same)
        address = value.untyped_storage().data_ptr()
        for one in call.tensors.values():
            if one.block.address == address:
                return SimTensor(value, device, one.block)  # a view
        call.allocated = True
        return wrap(value, device)
    if isinstance(value, list | tuple):
        return type(value)([_give(operation, device, call, one) for one in value])
    return value


def _unchanged(operation: Operation, one: SimTensor) -> SimTensor:
    if one.shape != one.data_on_host.shape or one.stride() != one.data_on_host.stride():
        raise SimError(f"{one.chip.name}: {operation.name} would give a tensor another shape")
    return one


# Copies between places


def _moves(call: _Call, kwargs: Mapping[str, Any]) -> bool:
    """Whether it goes from the device to the host, to the device, or between devices."""
    if call.others or call.chip is None:
        return True
    target = kwargs.get("device")
    return target is not None and target != _torch_device(call.chip.index)


def _move(
    operation: Operation,
    func: OpOverload,
    call: _Call,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """A copy over the bus or the link; a program has no such thing."""
    if operation.name == "aten::_to_copy":
        return _move_to(func, call, args, kwargs)
    target, source = args[0], args[1]
    waits = not (kwargs.get("non_blocking") or (len(args) > 2 and args[2]))
    into, out_of = call.tensors.get(id(target)), call.tensors.get(id(source))
    if into is None:
        assert out_of is not None
        _to_host(out_of.chip, waits)
        return target.copy_(source)
    if out_of is None:
        into.chip.counts.to_device += 1
    else:
        into.chip.counts.between_devices += 1
        into.chip.clock.transfer(source.nbytes)
    target.copy_(source)
    return into


def _move_to(
    func: OpOverload, call: _Call, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Tensor:
    target: torch.device = call.target or _HOST
    if target.type != "sim":
        assert call.chip is not None
        _to_host(call.chip, not kwargs.get("non_blocking"))
        there: Tensor = func(*args, **kwargs)
        return there
    device = chip(target.index or 0)
    if call.chip is None:
        device.counts.to_device += 1
    else:
        device.counts.between_devices += 1
        device.clock.transfer(args[0].nbytes)
    return wrap(func(*args, **kwargs), device)


def _to_host(device: Chip, waits: bool) -> None:
    device.counts.to_host += 1
    if waits:
        device.wait("a copy to the host")
    else:
        device.check_present()
