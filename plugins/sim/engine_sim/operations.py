"""What the device knows of each operation before it runs one, and what one costs.

Costs are bytes moved and multiplications and additions done; a program's inner workings are not
modelled, so an operation moves each operand and each result once.
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils.flop_counter import flop_registry

from engine_sim.chip import Signature

#: (arguments on the host, results on the host) -> (bytes, flops)
Cost = Callable[[tuple[Any, ...], Any], tuple[float, float]]

_ATEN = torch.ops.aten
_COPIES = (_ATEN._to_copy.default, _ATEN.copy_.default)
_ROOM = (_ATEN.empty.memory_format, _ATEN.empty_strided.default)
#: Their results say how much of the first operand they touch.
_READ_SOME = (
    _ATEN.index.Tensor,
    _ATEN.index_select.default,
    _ATEN.embedding.default,
    _ATEN.gather.default,
)
#: Operand that says how much of the first one they write.
_WRITE_SOME = {
    _ATEN.index_put_.default: 2,
    _ATEN._index_put_impl_.default: 2,
    _ATEN.index_copy_.default: 3,
    _ATEN.index_add_.default: 3,
    _ATEN.scatter_.src: 3,
}
#: torch has these in terms of others; the device runs each as one.
_WHOLE = (_ATEN.linear.default,)
#: Wait only where an index is boolean.
_INDEXED = (
    _ATEN.index.Tensor,
    _ATEN.index_put.default,
    _ATEN.index_put_.default,
    _ATEN._index_put_impl_.default,
)
_BOOLEAN = (torch.bool, torch.uint8)


@dataclass(frozen=True, slots=True)
class Operation:
    name: str
    is_copy: bool  # between places or dtypes: its tensors may live in different places
    writes: bool  # gives back tensors that came in
    decomposes: bool  # torch has it in terms of others
    may_wait: bool  # its result depends on values: the host waits for the device
    is_index: bool  # waits only where one of its indices is boolean
    cost: Cost

    def waits(self, args: tuple[Any, ...]) -> bool:
        if not self.is_index:
            return self.may_wait
        return any(one is not None and one.dtype in _BOOLEAN for one in args[1])


def learn(func: OpOverload, costs: Mapping[OpOverload, Cost]) -> Operation:
    """`costs` has those of the device's own operations."""
    tags = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
    name: str = func.name()  # type: ignore[no-untyped-call]
    composite = torch._C._dispatch_has_kernel_for_dispatch_key(name, "CompositeImplicitAutograd")
    return Operation(
        name=name,
        is_copy=func in _COPIES,
        writes=func._schema.is_mutable,
        decomposes=composite and func not in _WHOLE,
        may_wait=func in _INDEXED or any(tag in func.tags for tag in tags),
        is_index=func in _INDEXED,
        cost=costs.get(func) or _cost(func),
    )


def sign(operation: Operation, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Signature:
    """A call as a compiler sees it: numbers that are no tensors are part of the program."""
    values = [_seen(one) for one in args]
    values += [(name, _seen(value)) for name, value in kwargs.items()]
    return operation.name, tuple(values)


def _seen(value: Any) -> Hashable:
    if isinstance(value, Tensor):
        return (*value.shape, str(value.dtype).removeprefix("torch."))
    if isinstance(value, list | tuple):
        return tuple(_seen(one) for one in value)
    return str(value) if isinstance(value, torch.device) else value


def num_bytes(value: Any) -> int:
    """Of all tensors in an operation's arguments or results."""
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, list | tuple):
        return sum(num_bytes(one) for one in value)
    return 0


def _cost(func: OpOverload) -> Cost:
    if func in _ROOM:
        return lambda args, result: (0, 0)
    if func is _ATEN.linear.default:
        return _linear
    if func.overloadpacket in flop_registry:
        return _product(func)
    if func in _READ_SOME:
        return lambda args, result: (2 * num_bytes(result), 0)
    if (written := _WRITE_SOME.get(func)) is not None:
        return lambda args, result: (2 * num_bytes(args[written]), 0)
    return _elementwise


def _product(func: OpOverload) -> Cost:
    count = cache(flop_registry[func.overloadpacket])  # slow, and takes shapes as well

    def cost(args: tuple[Any, ...], result: Any) -> tuple[float, float]:
        shapes = [one.shape if isinstance(one, Tensor) else one for one in args]
        return num_bytes(args) + num_bytes(result), count(*shapes, out_val=result.shape)

    return cost


def _linear(args: tuple[Any, ...], result: Any) -> tuple[float, float]:
    return num_bytes(args) + num_bytes(result), 2 * result.numel() * args[1].shape[1]


def _elementwise(args: tuple[Any, ...], result: Any) -> tuple[float, float]:
    return num_bytes(args) + num_bytes(result), 0
