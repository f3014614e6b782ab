"""Each layer against products in float64 of the weights that it keeps."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from engine_triton.architecture import Architecture
from engine_triton.linear import rounding
from engine_triton.linear.layers import DenseLinear, Fp8Linear, WeightOnlyLinear
from engine_triton.linear.product import ROWS
from engine_triton.linear.weights import Weight

#: Sums are float32, results are rounded to the dtype; 4-bit weights are, before the product.
TOLERANCES = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
DTYPES = list(TOLERANCES)
#: (outputs, inputs): no multiples of tiles; several tiles; few outputs, so that K is divided.
SIZES = ((33, 80), (97, 576), (5, 1000))
ROUNDINGS = {
    "int8": rounding.to_int8,
    "fp8": rounding.to_fp8,
    "int4": rounding.to_int4,
    "int4 in groups of 128": lambda weight: rounding.to_int4(weight, 128),
    "int4 with zeros": lambda weight: rounding.to_int4_with_zeros(weight, 64),
}


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    random = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=random).to(dtype)


def relative_error(found: Tensor, exact: Tensor) -> float:
    assert found.isfinite().all()
    return float((found.double() - exact).abs().max() / exact.abs().max())


def exact_rows(weight: Weight) -> Tensor:
    """[O, K] float64, as the weights were rounded."""
    return weight.rows(torch.arange(weight.outputs), torch.float32).double()


def in_blocks(weight: Tensor, size: int = 128) -> Weight:
    """Rounded to fp8 with a scale for `size` x `size` weights."""
    outputs, inputs = weight.shape
    padded = functional.pad(weight.float(), (0, -inputs % size, 0, -outputs % size))
    tiles = padded.unflatten(1, (-1, size)).unflatten(0, (-1, size))
    scales = tiles.abs().amax((1, 3)) / rounding.E4M3_MAX
    levels = (tiles / scales[:, None, :, None]).flatten(2, 3).flatten(0, 1)[:outputs, :inputs]
    return Weight(
        form="blocks",
        levels=levels.to(torch.float8_e4m3fn).contiguous(),
        scales=scales,
        group=size,
        inputs=inputs,
    )


@pytest.mark.parametrize(
    ("rows", "dtype"),
    [
        *((rows, torch.bfloat16) for rows in (*range(1, 18), 33)),
        *((rows, torch.float16) for rows in (1, 3, 16, 17)),
    ],
)
def test_a_linear_layer_multiplies_any_number_of_rows(
    architecture: Architecture, rows: int, dtype: torch.dtype
) -> None:
    for outputs, inputs in SIZES:
        weight, bias = normal(outputs, inputs, dtype=dtype), normal(outputs, dtype=dtype)
        x = normal(rows, inputs, dtype=dtype)
        exact = x.double() @ weight.double().T + bias.double()
        found = DenseLinear(weight, bias, architecture)(x)
        assert found.dtype == dtype
        assert relative_error(found, exact) < TOLERANCES[dtype]


@pytest.mark.parametrize("rows", [2, 17, 65])
def test_the_tiles_of_many_rows_are_right_also_where_a_library_would_serve(
    architecture: Architecture, rows: int
) -> None:
    kernels = replace(
        architecture,
        kernels={**architecture.kernels, "dense_linear": [{"blocks": {"KERNELS": True}}]},
    )
    weight, x = normal(130, 200, dtype=torch.bfloat16), normal(rows, 200, dtype=torch.bfloat16)
    found = DenseLinear(weight, None, kernels)(x)
    assert relative_error(found, x.double() @ weight.double().T) < TOLERANCES[torch.bfloat16]


@pytest.mark.parametrize("name", ROUNDINGS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rounded_weights_multiply_as_what_they_were_rounded_to(
    architecture: Architecture, name: str, dtype: torch.dtype
) -> None:
    for (outputs, inputs), rows in zip(SIZES, (3, 17, 1), strict=True):
        weight = ROUNDINGS[name](normal(outputs, inputs))
        bias, x = normal(outputs, dtype=dtype), normal(rows, inputs, dtype=dtype)
        exact = x.double() @ exact_rows(weight).T + bias.double()
        found = WeightOnlyLinear(weight, bias, architecture)(x)
        assert found.dtype == dtype
        assert relative_error(found, exact) < TOLERANCES[dtype]


@pytest.mark.parametrize("fp8", ["e4m3", "e4m3fnuz", None])
@pytest.mark.parametrize("rows", [1, 16])
def test_fp8_means_the_same_on_every_chip(
    architecture: Architecture, fp8: str | None, rows: int
) -> None:
    chip = replace(architecture, fp8=fp8, fp8_matrix=fp8 is not None)
    x = normal(rows, 300, dtype=torch.bfloat16)
    for make in (rounding.to_fp8, in_blocks):
        weight = make(normal(140, 300))
        found = Fp8Linear(weight, None, chip)(x)
        assert relative_error(found, x.double() @ exact_rows(weight).T) < 8e-3


def test_every_finite_bit_pattern_of_fp8_is_read_right_where_the_chip_has_none(
    architecture: Architecture,
) -> None:
    bits = torch.arange(256, dtype=torch.uint8)
    bits = bits[(bits & 0x7F) != 0x7F]  # NaN
    levels = bits.view(torch.float8_e4m3fn)[None]
    weight = Weight(form="rows", levels=levels, scales=torch.ones(1), inputs=len(bits))
    chip = replace(architecture, fp8=None, fp8_matrix=False)
    for dtype in DTYPES:
        found = WeightOnlyLinear(weight, None, chip)(torch.eye(len(bits), dtype=dtype))
        torch.testing.assert_close(found[:, 0].float(), levels[0].float(), rtol=0, atol=0)


@pytest.mark.parametrize("fp8", ["e4m3", "e4m3fnuz"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_rows_are_rounded_to_fp8_and_multiplied_as_that(
    architecture: Architecture, fp8: str, dtype: torch.dtype
) -> None:
    chip = replace(architecture, fp8=fp8)
    x, bias = normal(ROWS[0] + 1, 300, dtype=dtype), normal(140, dtype=dtype)
    most = 448 if fp8 == "e4m3" else 240
    of_fp8 = torch.float8_e4m3fn if fp8 == "e4m3" else torch.float8_e4m3fnuz
    for make, group in ((rounding.to_fp8, 300), (in_blocks, 128)):
        x_groups = rounding.in_groups(x.float(), group)
        scales = x_groups.abs().amax(-1, keepdim=True) / most
        rounded = ((x_groups / scales).to(of_fp8).double() * scales).flatten(1)[:, :300]
        weight = make(normal(140, 300))
        found = Fp8Linear(weight, bias, chip)(x)
        exact = rounded @ exact_rows(weight).T + bias.double()
        assert relative_error(found, exact) < max(2e-5, TOLERANCES[dtype])


def test_one_fp8_scale_for_all_weights_is_one_for_every_row(architecture: Architecture) -> None:
    weight = normal(40, 64)
    scale = weight.abs().max() / rounding.E4M3_MAX
    levels = (weight / scale).to(torch.float8_e4m3fn)
    x = normal(3, 64)
    layer = Fp8Linear(
        Weight(form="rows", levels=levels, scales=scale.expand(40), inputs=64), None, architecture
    )
    assert relative_error(layer(x), x.double() @ (levels.double() * scale.double()).T) < 2e-6


@pytest.mark.parametrize("rows", [1, 5, 20])
def test_rows_may_lie_apart_and_more_dimensions_may_lead(
    architecture: Architecture, rows: int
) -> None:
    weight = normal(33, 80, dtype=torch.bfloat16)
    layers = (
        DenseLinear(weight, None, architecture),
        WeightOnlyLinear(rounding.to_int4(weight), None, architecture),
        Fp8Linear(rounding.to_fp8(weight), None, architecture),
    )
    wide = normal(rows, 200, dtype=torch.bfloat16)
    x = wide[:, 40:120]
    for layer in layers:
        alone = layer(x.contiguous())
        torch.testing.assert_close(layer(x), alone, rtol=0, atol=0)
        torch.testing.assert_close(layer(x[None]), alone[None], rtol=0, atol=0)
        columns = x.T.contiguous().T  # each column contiguous
        torch.testing.assert_close(layer(columns), alone, rtol=0, atol=0)


def test_no_rows_give_no_rows(architecture: Architecture) -> None:
    weight = normal(33, 80, dtype=torch.bfloat16)
    nothing = torch.empty(0, 80, dtype=torch.bfloat16)
    for layer in (
        DenseLinear(weight, None, architecture),
        WeightOnlyLinear(rounding.to_int8(weight), None, architecture),
        Fp8Linear(rounding.to_fp8(weight), None, architecture),
    ):
        assert layer(nothing).shape == (0, 33)


def test_equal_inputs_give_equal_bits_also_where_k_is_divided(architecture: Architecture) -> None:
    weight, x = normal(5, 1000, dtype=torch.bfloat16), normal(4, 1000, dtype=torch.bfloat16)
    layer = DenseLinear(weight, None, architecture)
    torch.testing.assert_close(layer(x), layer(x), rtol=0, atol=0)


def test_rows_that_were_looked_up_are_those_that_logits_are_made_of(
    architecture: Architecture,
) -> None:
    ids = torch.tensor([4, 0, 96, 4])
    for make in ROUNDINGS.values():
        layer = WeightOnlyLinear(make(normal(97, 80)), None, architecture)
        from_products = layer(torch.eye(80)).T[ids]
        found = layer.look_up(ids, torch.float32)
        torch.testing.assert_close(found, from_products, rtol=1e-6, atol=1e-6)
