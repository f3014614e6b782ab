"""Linear layers and experts, of few rows and of many, for compilers that have no chip.

Shape legend: O output features, K input features, M rows.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from triton_cases import Case

from engine_triton.architecture import Architecture
from engine_triton.linear.experts import Experts
from engine_triton.linear.layers import DenseLinear, Fp8Linear, WeightOnlyLinear
from engine_triton.linear.weights import Weight, plain

OUTPUTS, INPUTS = 1024, 2048
FEW, MANY = 8, 256
EXPERTS, ACTIVE, WIDTH, INNER = 64, 8, 1024, 512


def rows_of(levels: torch.dtype) -> Callable[[Tensor], Weight]:
    def make(weight: Tensor) -> Weight:
        outputs, inputs = weight.shape
        return Weight(
            form="rows",
            levels=torch.zeros(outputs, inputs, dtype=levels, device=weight.device),
            scales=torch.ones(outputs, device=weight.device),
            inputs=inputs,
        )

    return make


def blocks(weight: Tensor) -> Weight:
    outputs, inputs = weight.shape
    return Weight(
        form="blocks",
        levels=torch.zeros(outputs, inputs, dtype=torch.float8_e4m3fn, device=weight.device),
        scales=torch.ones(outputs // 128, inputs // 128, device=weight.device),
        group=128,
        inputs=inputs,
    )


def groups(weight: Tensor) -> Weight:
    outputs, inputs = weight.shape
    return Weight(
        form="groups",
        levels=torch.zeros(outputs, inputs // 2, dtype=torch.uint8, device=weight.device),
        scales=torch.ones(outputs, inputs // 32, dtype=torch.bfloat16, device=weight.device),
        group=32,
        inputs=inputs,
    )


int8, fp8 = rows_of(torch.int8), rows_of(torch.float8_e4m3fn)


def dense(rows: int) -> Callable[[str, Architecture], None]:
    def run(device: str, architecture: Architecture) -> None:
        weight = _zeros(device, OUTPUTS, INPUTS)
        DenseLinear(weight, _zeros(device, OUTPUTS), architecture)(_zeros(device, rows, INPUTS))

    return run


def rounded(
    make: Callable[[Tensor], Weight], rows: int, layer: type[WeightOnlyLinear] | type[Fp8Linear]
) -> Callable[[str, Architecture], None]:
    def run(device: str, architecture: Architecture) -> None:
        weight = make(_zeros(device, OUTPUTS, INPUTS))
        layer(weight, None, architecture)(_zeros(device, rows, INPUTS))

    return run


def experts(make: Callable[[Tensor], Weight], tokens: int) -> Callable[[str, Architecture], None]:
    def run(device: str, architecture: Architecture) -> None:
        gate_up = _zeros(device, EXPERTS, 2 * INNER, WIDTH)
        down = _zeros(device, EXPERTS, WIDTH, INNER)
        share = torch.full((tokens, ACTIVE), 1 / ACTIVE, device=device)
        ids = torch.arange(ACTIVE, device=device).repeat(tokens, 1)
        layer = Experts(gate_up, down, make, architecture)
        layer(_zeros(device, tokens, WIDTH), share, ids)

    return run


def _zeros(device: str, *shape: int) -> Tensor:
    return torch.zeros(*shape, dtype=torch.bfloat16, device=device)


CASES = (
    Case("linear, one row", dense(1), hot=True),
    Case("linear, few rows", dense(FEW), hot=True, matrix=True),
    Case("int8, few rows", rounded(int8, FEW, WeightOnlyLinear), hot=True, matrix=True),
    Case("int8, many rows", rounded(int8, MANY, WeightOnlyLinear), hot=True, matrix=True),
    Case("int4, few rows", rounded(groups, FEW, WeightOnlyLinear), hot=True, matrix=True),
    Case("int4, many rows", rounded(groups, MANY, WeightOnlyLinear), hot=True, matrix=True),
    Case("fp8, few rows", rounded(fp8, FEW, Fp8Linear), hot=True, matrix=True),
    Case("fp8, many rows", rounded(fp8, MANY, Fp8Linear), hot=True, matrix=True),
    Case("fp8 in blocks, few rows", rounded(blocks, FEW, Fp8Linear), hot=True, matrix=True),
    Case("fp8 in blocks, many rows", rounded(blocks, MANY, Fp8Linear), hot=True, matrix=True),
    Case("experts, few tokens", experts(plain, FEW), hot=True, matrix=True),
    Case("experts, many tokens", experts(plain, 8 * MANY), hot=True, matrix=True),
)
