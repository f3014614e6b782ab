"""Captured work on tensors of the host: a stand-in for a GPU's graphs, as strict as they are.

While work is recorded, each of torch's operations and each launch of an interpreted kernel is kept
with its very arguments. A replay does them again, in the same memory; none of the work's own Python
code runs. So what a number on the host would have changed is as it was, and what waits for the
device is an error, as with a graph. As with a graph, no kernel runs while it is recorded, either:
what they would have written is there after the first replay.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch._C._distributed_c10d import Work
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.runtime.interpreter import InterpretedFunction

from engine_triton.device import Recording

aten = torch.ops.aten

#: Operations whose result, or its size, is a number that the host must know.
WAITING = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.equal.default,
}
#: Methods that read a tensor's memory, or copy it to the host at once.
READING = ("tolist", "numpy", "cpu")
#: Masks among their indices are looked for on the host.
INDEXING = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default}


class Unwaiting(TorchDispatchMode):
    """Within it, what would wait for a GPU is a RuntimeError; within kernels nothing would."""

    def __init__(self) -> None:
        super().__init__()
        self.num_kernels = 0
        self._in_kernel = False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self._in_kernel:
            return function(*args, **kwargs)
        if function in WAITING or (function in INDEXING and _has_mask(args[1])):
            raise RuntimeError(f"{function} waits for the device, which is not permitted here")
        return self._done(function, args, kwargs)

    def _done(self, function, args, kwargs):
        return function(*args, **kwargs)

    def _launched(self, launch: Callable[[], None]) -> None:
        self._in_kernel = True
        try:
            launch()
        finally:
            self._in_kernel = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within the block, operations and launches are looked at."""
        run = InterpretedFunction.run

        def watched(kernel, *args, **kwargs):
            self.num_kernels += 1
            self._launched(lambda: run(kernel, *args, **kwargs))

        with pytest.MonkeyPatch.context() as patch, self:
            patch.setattr(InterpretedFunction, "run", watched)
            for name in READING:
                patch.setattr(Tensor, name, self._refusing(name))
            yield

    def _refusing(self, name: str) -> Callable[..., object]:
        method = vars(torch._C.TensorBase)[name]

        def read(x, *args, **kwargs):
            if not self._in_kernel:
                raise RuntimeError(
                    f"Tensor.{name} waits for the device, which is not permitted here"
                )
            return method(x, *args, **kwargs)

        return read


class Tape(Unwaiting):
    """`with tape.watching(): work()`, then `tape.replay()`."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Callable[[], None]] = []
        self.num_replays = 0

    def replay(self) -> None:
        self.num_replays += 1
        for step in self.steps:
            step()

    def _done(self, function, args, kwargs):
        result = function(*args, **kwargs)
        if function.namespace == "c10d":  # a collective: it writes into its arguments
            self.steps.append(lambda: _wait(function(*args, **kwargs)))
        elif function._schema.is_mutable:
            self.steps.append(lambda: function(*args, **kwargs))
        elif not _is_view(result, (args, kwargs)):
            self.steps.append(lambda: _again(result, function(*args, **kwargs)))
        return result

    def _launched(self, launch):
        self.steps.append(launch)


@dataclass(frozen=True, slots=True)
class Recorded:
    tape: Tape
    recording: Recording

    @property
    def num_replays(self) -> int:
        return self.tape.num_replays


def record(work: Callable[[], Tensor]) -> Recorded:
    """
    Raises:
        RuntimeError: the work waits for the device.
    """
    tape = Tape()
    with tape.watching():
        result = work()
    return Recorded(tape, Recording(tape.replay, result))


def _has_mask(indices: object) -> bool:
    masks = (torch.bool, torch.uint8)
    return any(isinstance(one, Tensor) and one.dtype in masks for one in tree_leaves(indices))


def _is_view(result: object, given: object) -> bool:
    """Whether it lies in the memory of what it was made from."""
    known = {_memory(one) for one in tree_leaves(given) if isinstance(one, Tensor)}
    made = [one for one in tree_leaves(result) if isinstance(one, Tensor)]
    return bool(made) and all(_memory(one) in known for one in made)


def _memory(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def _wait(started: object) -> None:
    for one in tree_leaves(started):
        if isinstance(one, torch.ScriptObject):
            Work.unbox(one).wait()


def _again(first: object, now: object) -> None:
    for old, new in zip(tree_leaves(first), tree_leaves(now), strict=True):
        if isinstance(old, Tensor):
            old.copy_(new)
