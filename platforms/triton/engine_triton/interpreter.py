"""Triton's interpreter, which runs kernels on tensors of the host, mended where it is wrong.

As Triton 3.7 has it, the interpreter

* adds, multiplies and compares bfloat16 numbers by their raw bits;
* rounds to bfloat16 and to fp8 by cutting off, or wrongly;
* knows no fp8 of the kind without negative zero;
* warns of infinities and NaNs that a kernel computes on purpose;
* prepares the language anew whenever one function calls another, and much besides (see
  interpreter_reuse.py), which takes most of its time.

`mend` replaces those parts: what is narrower than float16 is computed in float32 and rounded to the
nearest, ties to even, as devices do. An fp8 number beyond the format becomes NaN, where devices
differ: a kernel must clamp before.
"""

import os
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine_triton import interpreter_reuse

Array = NDArray[Any]

_SWITCH = "TRITON_INTERPRET"


def switch_on() -> None:
    """For this process and those it starts. To be called before triton is imported by anyone.

    Raises:
        RuntimeError: triton was imported to compile kernels, which cannot be undone.
    """
    if "triton" in sys.modules and os.environ.get(_SWITCH) != "1":
        raise RuntimeError(f"triton was imported already: set {_SWITCH}=1 before Python starts")
    os.environ[_SWITCH] = "1"
    mend()


def mend() -> None:
    """Make the interpreter right. Once is enough; twice does no harm."""
    from triton.runtime import interpreter

    builder: Any = interpreter.InterpreterBuilder
    if builder.cast_impl is _cast:
        return
    interpreter_reuse.reuse()
    builder.create_fp_to_fp = _rounding_cast(builder.create_fp_to_fp)
    builder.cast_impl = _cast
    builder.create_dot = _dot
    for name in ("binary_op", "unary_op", "ternary_op"):
        setattr(builder, name, _widened(getattr(builder, name)))
    builder.create_fma = lambda self, x, y, z: self.ternary_op(x, y, z, lambda a, b, c: a * b + c)
    reduction: Any = interpreter.ReduceOps
    reduction.apply_impl = _reduction(reduction.apply_impl)
    module: Any = interpreter
    module._patch_lang_core = _with_every_type(module._patch_lang_core)
    module._get_np_dtype = _remembering(module._get_np_dtype)
    prepared: set[tuple[bool, ...]] = set()
    executor: Any = interpreter.GridExecutor
    executor.__call__ = _launch(executor.__call__, prepared)
    function: Any = interpreter.InterpretedFunction
    function.__call__ = _inner_call(prepared)


def _cast(builder: Any, source: Any, target: Any) -> Any:
    return _handle(_store(_numbers(source), target.scalar), target.scalar)


def _rounding_cast(original: Callable[..., Any]) -> Callable[..., Any]:
    from triton._C.libtriton import ir  # as the interpreter itself imports it

    def cast(builder: Any, source: Any, target: Any, rounding: Any) -> Any:
        if rounding == ir.ROUNDING_MODE.RTZ:
            return original(builder, source, target, rounding)
        return _cast(builder, source, target)

    return cast


def _dot(builder: Any, a: Any, b: Any, d: Any, precision: Any, imprecise: Any) -> Any:
    kind = d.data.dtype
    product = np.matmul(_numbers(a).astype(kind), _numbers(b).astype(kind))
    return _handle(product + d.data, d.dtype.scalar)


def _widened(original: Callable[..., Any]) -> Callable[..., Any]:
    """The operation on numbers instead of on bits. Booleans stay what they are."""
    import triton.language as tl

    def apply(builder: Any, *arguments: Any) -> Any:
        *handles, operation = arguments
        kinds = (handle.dtype.scalar for handle in handles)
        narrow = next((kind for kind in kinds if _is_narrow(kind)), None)
        if narrow is None or operation is np.where:  # which only chooses
            return original(builder, *arguments)
        result = operation(*(_numbers(handle) for handle in handles))
        if result.dtype == np.bool_:
            return _handle(result, tl.int1)
        return _handle(_store(result, narrow), narrow)

    return apply


def _reduction(original: Callable[..., Any]) -> Callable[..., Any]:
    import triton.language as tl

    def apply(reduction: Any, inputs: Any) -> Any:
        if any(_is_narrow(one.dtype.scalar) for one in inputs):
            raise TypeError("a reduction of bfloat16 loses digits on a device: reduce in float32")
        for combine, operation in (
            (tl.standard._elementwise_max, np.fmax),  # which ignore NaNs without a warning
            (tl.standard._elementwise_min, np.fmin),
        ):
            if reduction.combine_fn == combine:
                data = inputs[0].handle.data
                axis = reduction.axis
                found = operation.reduce(data, axis=axis, keepdims=reduction.keep_dims)
                return reduction.to_tensor(found, inputs[0].dtype)
        return original(reduction, inputs)

    return apply


def _with_every_type(original: Callable[..., None]) -> Callable[..., None]:
    def patch(language: Any, scope: Any) -> None:
        original(language, scope)
        known = language.dtype.to_ir

        def to_ir(kind: Any, builder: Any) -> Any:
            return kind if kind.name in ("fp8e4b8", "fp8e5b16") else known(kind, builder)

        scope.set_attr(language.dtype, "to_ir", to_ir)

    return patch


def _remembering(original: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The numpy dtype of a scalar type, which the interpreter asks for at every operation."""
    known: dict[str, Any] = {}

    def find(kind: Any) -> Any:
        if kind.is_ptr() or kind.is_block():
            return original(kind)
        if kind.name not in known:
            known[kind.name] = original(kind)
        return known[kind.name]

    return find


def _launch(original: Callable[..., Any], prepared: set[tuple[bool, ...]]) -> Callable[..., Any]:
    def launch(executor: Any, *arguments: Any, **named: Any) -> Any:
        prepared.clear()  # a launch puts back what it replaced
        with np.errstate(all="ignore"):
            return original(executor, *arguments, **named)

    return launch


def _inner_call(prepared: set[tuple[bool, ...]]) -> Callable[..., Any]:
    """A function that a kernel calls: the modules it uses are prepared once in a launch."""
    import triton.language as tl
    from triton.runtime import interpreter

    module: Any = interpreter

    @cache
    def modules(function: Any) -> tuple[bool, ...]:
        used = function.__globals__.values()
        return tuple(any(each is language for each in used) for language in (tl, tl.core))

    def call(function: Any, *arguments: Any, **named: Any) -> Any:
        kind = modules(function.fn)
        if kind not in prepared:
            module._patch_lang(function.fn)
            prepared.add(kind)
        return function.rewrite()(*arguments, **named)

    return call


def _handle(data: Array, kind: Any) -> Any:
    from triton.runtime.interpreter import TensorHandle

    return TensorHandle(data, kind)


def _is_narrow(kind: Any) -> bool:
    """A format that numpy lacks: bfloat16 or fp8."""
    return bool(kind.is_floating()) and (kind.primitive_bitwidth == 8 or kind.is_bf16())


def _numbers(handle: Any) -> Array:
    """Of a handle, as numpy can compute them."""
    data: Array = handle.data
    kind = handle.dtype.scalar
    if not _is_narrow(kind):
        return data
    if kind.is_bf16():
        return (data.astype(np.uint32) << 16).view(np.float32)
    import torch

    bits = torch.from_numpy(np.array(data, dtype=np.uint8, order="C"))
    return bits.view(_torch_fp8(kind)).float().numpy()


def _store(data: Array, kind: Any) -> Array:
    """Numbers in the form that the interpreter keeps them in."""
    from triton.runtime.interpreter import _get_np_dtype

    if not _is_narrow(kind):
        return data.astype(_get_np_dtype(kind))
    wide = np.array(data, dtype=np.float32, order="C")
    if kind.is_bf16():
        return _bfloat16_bits(wide)
    import torch

    return torch.from_numpy(wide).to(_torch_fp8(kind)).view(torch.uint8).numpy()


def _bfloat16_bits(wide: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Rounded to the nearest, ties to even: half of the last place is added, less one if even."""
    bits = wide.view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1)).astype(np.uint32)) >> 16
    return np.where(np.isnan(wide), (bits >> 16) | 0x40, rounded).astype(np.uint16)


def _torch_fp8(kind: Any) -> Any:
    import torch

    return {
        "fp8e4nv": torch.float8_e4m3fn,
        "fp8e4b8": torch.float8_e4m3fnuz,
        "fp8e5": torch.float8_e5m2,
        "fp8e5b16": torch.float8_e5m2fnuz,
    }[kind.name]
