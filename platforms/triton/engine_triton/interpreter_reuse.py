"""What Triton's interpreter makes anew at every operation or launch, made once.

A tensor has a new type object, and a type a new tuple of its shape, after each operation of a
program; at each launch all functions of the language are looked for, to replace those that the
compiler has its own way with. None of this depends on more than names and shapes, and nobody
changes it; making it takes most of the interpreter's time. So does looking for integers that leave
their type after each sum and product: what is found is an assertion, which only debugging compiles.
"""

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any


def reuse() -> None:
    """Replace what makes them. To be called once, before the first launch."""
    from triton.language import core
    from triton.runtime import interpreter

    language: Any = core
    language.block_type.__init__ = _known_block(language, language.block_type.__init__)
    language.tensor.__init__ = _tensor(language)
    module: Any = interpreter
    module._patch_builtin = _patch_builtin(language, module.interpreter_semantic)
    options = module.interpreter_builder.options
    module.interpreter_builder.options = dataclasses.replace(
        options, sanitize_overflow=options.debug
    )


def _known_block(core: Any, original: Callable[..., None]) -> Callable[..., None]:
    known: dict[tuple[Any, ...], dict[str, Any]] = {}

    def initialize(block: Any, element_ty: Any, shape: Sequence[Any]) -> None:
        key = (
            element_ty.name,
            *[one.value if isinstance(one, constexpr) else one for one in shape],
        )
        if key in known:
            block.__dict__ = known[key]
        else:
            original(block, element_ty, shape)
            known[key] = block.__dict__

    constexpr = core.constexpr
    return initialize


def _tensor(core: Any) -> Callable[..., None]:
    known: dict[str, tuple[Any, Any]] = {}  # (shape, numel) by the type's name

    def initialize(tensor: Any, handle: Any, kind: Any) -> None:
        tensor.handle, tensor.type, tensor.dtype = handle, kind, kind.scalar
        name = kind.name
        if name not in known:
            shape = kind.shape if kind.is_block() else ()
            number = kind.numel if kind.is_block() else 1
            known[name] = core.tuple([core.constexpr(one) for one in shape]), core.constexpr(number)
        tensor.shape, tensor.numel = known[name]

    return initialize


def _patch_builtin(core: Any, semantic: Any) -> Callable[..., None]:
    """Give a package's or class' functions to the interpreter, until the scope restores them."""

    @cache
    def functions(package: Any) -> list[tuple[str, Any, Callable[..., Any]]]:
        """(name, as the language has it, as the interpreter calls it)."""
        members = inspect.getmembers(package, core.is_builtin)
        return [(name, member, _interpreted(member, semantic)) for name, member in members]

    def patch(package: Any, builder: Any, scope: Any) -> None:
        for name, member, interpreted in functions(package):
            if getattr(package, name) is member:  # not replaced yet, in this launch
                scope.set_attr(package, name, interpreted)

    return patch


def _interpreted(member: Any, semantic: Any) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        named["_semantic"] = semantic
        return member(*arguments, **named)

    return call
