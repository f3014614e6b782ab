"""Quantized layers as the table hands them out, by torch and by the native kernels."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from engine import ops
from engine.errors import UnsupportedError
from engine.llm import LLM
from engine.params import SamplingParams
from engine.platform import Capabilities, OpTable
from engine_cpu import native, platform, quantized

GROUP = {"int8": 64, "int4": 32}
#: Squared error of weights, as a share: half a step of 127, and of 8 with a searched scale.
WEIGHT_ERROR = {"int8": 0.008, "int4": 0.1}

without_native = native.available()
implementations = pytest.mark.parametrize(
    "source",
    [
        "cpu",
        pytest.param(
            "cpu-native",
            marks=pytest.mark.skipif(without_native is not None, reason=str(without_native)),
        ),
    ],
)
quantizations = pytest.mark.parametrize("quantization", list(quantized.BITS))


def factory(source: str, name: str, quantization: str | None) -> Callable[..., object]:
    table = OpTable()
    ops.fill(table)
    quantized.register(table)
    if source == "cpu-native":
        from engine_cpu.native import quantized as native_quantized

        native_quantized.register(table)
    made = table.choose(name, dtype="float32", device="cpu:0", quantization=quantization)
    expected = source if quantization else "reference"
    assert table.chosen == {(name, expected): 1}
    return made


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def rounded_inputs(x: Tensor, size: int) -> Tensor:
    """To 8 bits, as float64."""
    groups = functional.pad(x, (0, -x.shape[1] % size)).view(len(x), -1, size)
    scale = groups.abs().amax(-1, keepdim=True) / 127
    levels = (groups * torch.where(scale > 0, 1 / scale, 0)).round().clamp(-127, 127)
    return (levels.double() * scale.double()).flatten(1)[:, : x.shape[1]]


@implementations
@quantizations
@pytest.mark.parametrize("features", [(96, 576), (33, 65), (1, 1), (768, 31)])
def test_products_are_those_of_the_rounded_weights_and_inputs(
    source: str, quantization: str, features: tuple[int, int]
) -> None:
    weight, x = normal(*features), normal(13, features[1])
    look_up, apply = factory(source, "tied_embedding", quantization)(weight)
    rounded = look_up(torch.arange(len(weight))).double()
    assert (rounded - weight).norm() < WEIGHT_ERROR[quantization] * weight.double().norm()
    right = rounded_inputs(x, GROUP[quantization]) @ rounded.T
    assert torch.allclose(apply(x).double(), right, rtol=1e-5, atol=2e-5)


@implementations
@quantizations
def test_a_bias_is_added_and_any_leading_shape_is_kept(source: str, quantization: str) -> None:
    weight, bias, x = normal(40, 64), normal(40), normal(2, 3, 64)
    make = factory(source, "linear", quantization)
    with_bias, plain = make(weight, bias), make(weight, None)
    assert with_bias(x).shape == (2, 3, 40)
    assert torch.allclose(with_bias(x), plain(x) + bias, atol=1e-5)


@implementations
@quantizations
def test_every_dtype_is_kept(source: str, quantization: str) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        weight, x = normal(40, 64).to(dtype), normal(5, 64).to(dtype)
        look_up, apply = factory(source, "tied_embedding", quantization)(weight)
        assert apply(x).dtype == look_up(torch.tensor([3])).dtype == dtype
        right = x.double() @ weight.double().T
        assert (apply(x).double() - right).norm() < 0.15 * right.norm()


@pytest.mark.skipif(without_native is not None, reason=str(without_native))
@quantizations
def test_torch_and_native_kernels_round_weights_alike(quantization: str) -> None:
    weight, ids = normal(96, 640), torch.arange(96)
    rows = [
        factory(source, "tied_embedding", quantization)(weight)[0](ids)
        for source in ("cpu", "cpu-native")
    ]
    # Of two scales that are equally good, either may win.
    assert (rows[0] != rows[1]).double().mean() < 0.001


@implementations
@pytest.mark.parametrize(("quantization", "bits"), [("int8", 8.25), ("int4", 4.5)])
def test_memory_is_that_of_the_weights_and_their_scales(
    source: str, quantization: str, bits: float
) -> None:
    layer = factory(source, "linear", quantization)(normal(64, 256), None)
    assert layer.num_bytes == 64 * 256 * bits / 8


@implementations
@quantizations
def test_experts_are_quantized_one_by_one(source: str, quantization: str) -> None:
    gate_up, down, x = normal(4, 96, 64), normal(4, 64, 48), normal(9, 64)
    ids = torch.tensor([[0, 3], [1, 3], [0, 1]] * 3)
    share = normal(9, 2).softmax(-1)
    found = factory(source, "mixture_of_experts", quantization)(gate_up, down)(x, share, ids)
    look_ups = factory(source, "tied_embedding", quantization)
    gate_up, down = (
        torch.stack([look_ups(one)[0](torch.arange(len(one))) for one in stack])
        for stack in (gate_up, down)
    )
    right = factory(source, "mixture_of_experts", None)(gate_up, down)(x, share, ids)
    assert (found - right).norm() < 0.02 * right.norm()  # the rounding of inputs remains


def test_the_torch_layer_makes_few_floats_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = normal(5, 64), normal(200, 64)
    whole = factory("cpu", "linear", "int8")(weight, None)(x)
    monkeypatch.setattr(quantized, "SLICE", 64 * 7)
    assert torch.equal(factory("cpu", "linear", "int8")(weight, None)(x), whole)


def test_a_platform_that_does_not_quantize_is_not_asked_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without = Capabilities(dtypes=("float32",), kv_dtypes=("float32",), block_sizes=(32,))
    monkeypatch.setattr(platform, "capabilities", lambda *_, **__: without)
    with pytest.raises(
        UnsupportedError, match=r"quantization 'int8' is not supported.*it has none"
    ):
        LLM(quantization="int8", num_blocks=64)


@implementations
@quantizations
def test_the_embedded_model_mostly_says_what_it_says_without(
    source: str, quantization: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(native.VARIABLE, "0" if source == "cpu" else "1")
    prompts = [[5 * i + 3 for i in range(n)] for n in (4, 9, 14, 23)]
    params = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
    replies = []
    for kind in (None, quantization):
        with LLM(dtype="float32", num_blocks=64, max_model_len=128, quantization=kind) as llm:
            replies.append([one.outputs[0].token_ids for one in llm.generate(prompts, params)])
    pairs = [
        (a, b)
        for expected, found in zip(*replies, strict=True)
        for a, b in zip(expected, found, strict=True)
    ]
    agreed = sum(a == b for a, b in pairs) / len(pairs)
    assert agreed >= (0.9 if quantization == "int8" else 0.3), f"{agreed:.0%} of tokens agree"
