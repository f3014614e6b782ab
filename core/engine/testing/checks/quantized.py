"""Linear layers over rounded weights: how far off they are, against the weights as they were.

The error is the root mean square of the differences, as a share of that of the right results:
rounding is allowed what its bits cost on normal weights, and no more.
"""

from collections.abc import Callable

import torch

from engine import ops
from engine.platform import Capabilities, OpTable
from engine.testing.checks.case import Case, all_of, needs_dtype
from engine.testing.checks.numbers import DTYPES, generator
from engine.testing.checks.subject import Subject

#: Over normal weights and inputs, whole numbers of 8 bits cost 1 to 1.5 %, of 4 bits 8 to 13 %, and
#: fp8 with 3 bits of mantissa 2 to 5 %, the most where activations are rounded too.
TOLERANCES = {"int8": 0.03, "int4": 0.18, "fp8": 0.07}

SIZES = ((64, 96), (576, 192), (1024, 256))  # input and output features
TOKENS = (1, 3, 33)


def needs_quantization(name: str) -> Callable[[Capabilities], str | None]:
    def skip(capabilities: Capabilities) -> str | None:
        return None if name in capabilities.quantization else f"declares no quantization {name}"

    return skip


def linear_is_near(quantization: str, dtype: str) -> Callable[[Subject], float]:
    def check(subject: Subject) -> float:
        """`linear` with weights that it was told to round."""
        table = OpTable()
        ops.fill(table)
        subject.platform.ops(table)
        device, random = subject.platform.device, generator(f"{quantization}-{dtype}")
        worst = 0.0
        for inputs, outputs in SIZES:
            weight = torch.randn(outputs, inputs, generator=random).to(DTYPES[dtype])
            make = table.choose(
                "linear",
                dtype=dtype,
                device=device,
                quantization=quantization,
                in_features=inputs,
                out_features=outputs,
                bias=False,
            )
            function = make(weight.clone().to(device), None)
            for tokens in TOKENS:
                x = torch.randn(tokens, inputs, generator=random).to(DTYPES[dtype])
                exact = x.double() @ weight.double().T
                off = function(x.clone().to(device)).cpu().double() - exact
                worst = max(worst, float(off.square().mean().sqrt() / exact.square().mean().sqrt()))
        return worst

    return check


CASES = tuple(
    Case(
        id=f"ops/quantized-{quantization}/linear-{dtype}",
        level="ops",
        check=linear_is_near(quantization, dtype),
        tolerance=tolerance,
        skip=all_of(needs_quantization(quantization), needs_dtype(dtype)),
        wide=True,
    )
    for quantization, tolerance in TOLERANCES.items()
    for dtype in DTYPES
)
