"""Linear layers and mixtures of experts, for the core's table of operations."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from engine.platform import OpTable
from engine_triton.architecture import Architecture
from engine_triton.linear import rounding
from engine_triton.linear.experts import Experts
from engine_triton.linear.layers import DenseLinear, Fp8Linear, WeightOnlyLinear
from engine_triton.linear.weights import Weight, plain

__all__ = ["QUANTIZATION", "register"]

#: By the names of `EngineConfig.quantization`.
ROUNDINGS: dict[str, Callable[[Tensor], Weight]] = {
    "fp8": rounding.to_fp8,
    "int8": rounding.to_int8,
    "int4": rounding.to_int4,
}
QUANTIZATION = frozenset(ROUNDINGS)
PRIORITY = 10


def register(table: OpTable, architecture: Architecture, *, source: str) -> None:
    """Add the linear layers, quantized and not, to a table that the core has filled.

    Args:
        source: the platform's name.
    """
    _register_plain(table, architecture, source)
    for name in ROUNDINGS:
        _register_rounded(table, architecture, source, name)


def _register_plain(table: OpTable, architecture: Architecture, source: str) -> None:
    def linear(weight: Tensor, bias: Tensor | None) -> DenseLinear:
        return DenseLinear(weight, bias, architecture)

    def tied_embedding(weight: Tensor) -> tuple[Callable[[Tensor], Tensor], DenseLinear]:
        return lambda ids: functional.embedding(ids, weight), DenseLinear(
            weight, None, architecture
        )

    def mixture_of_experts(gate_up_EGW: Tensor, down_EWF: Tensor) -> Experts:
        return Experts(gate_up_EGW, down_EWF, plain, architecture)

    def unserved(*, quantization: str | None = None, dtype: str, **_: object) -> str | None:
        if dtype not in ("bfloat16", "float16"):
            return f"its kernels are for bfloat16 and float16, not {dtype}"
        return _other(None, quantization)

    def unserved_experts(*, quantization: str | None = None, **_: object) -> str | None:
        return _other(None, quantization)

    for factory, unless in (
        (linear, unserved),
        (tied_embedding, unserved),
        (mixture_of_experts, unserved_experts),
    ):
        add = table.register(factory.__name__, source=source, priority=PRIORITY, unless=unless)
        add(factory)


def _register_rounded(
    table: OpTable, architecture: Architecture, source: str, quantization: str
) -> None:
    to_fewer_bits = ROUNDINGS[quantization]
    layer = Fp8Linear if quantization == "fp8" else WeightOnlyLinear

    def linear(weight: Tensor, bias: Tensor | None) -> Fp8Linear | WeightOnlyLinear:
        return layer(to_fewer_bits(weight), bias, architecture)

    def tied_embedding(
        weight: Tensor,
    ) -> tuple[Callable[[Tensor], Tensor], Fp8Linear | WeightOnlyLinear]:
        dtype: torch.dtype = weight.dtype
        made = linear(weight, None)
        return lambda ids: made.look_up(ids, dtype), made

    def mixture_of_experts(gate_up_EGW: Tensor, down_EWF: Tensor) -> Experts:
        return Experts(gate_up_EGW, down_EWF, to_fewer_bits, architecture)

    def unserved(**facts: object) -> str | None:
        return _other(quantization, facts.get("quantization"))

    for factory in (linear, tied_embedding, mixture_of_experts):
        add = table.register(factory.__name__, source=source, priority=PRIORITY, unless=unserved)
        add(factory)


def _other(made: str | None, wanted: object) -> str | None:
    """Why factories that make weights of `made` do not serve where `wanted` is asked for."""
    if wanted == made:
        return None
    keeps = "keeps weights as they are" if made is None else f"rounds weights to {made}"
    return f"it {keeps}, and {wanted or 'no rounding'} is asked for"
