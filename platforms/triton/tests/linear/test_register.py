"""The operations as the core's table hands them out, under the conformance kit's own questions."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from engine import ops
from engine.platform import OpTable
from engine.testing.checks import ops as questions
from engine.testing.checks import quantized
from engine.testing.checks.subject import Subject
from engine_triton import linear
from engine_triton.architecture import Architecture

NAMES = ("linear", "tied_embedding", "mixture_of_experts")
FACTS: dict[str, dict[str, Any]] = {
    "linear": {"in_features": 64, "out_features": 96, "bias": True},
    "tied_embedding": {"rows": 97, "width": 64},
    "mixture_of_experts": {"experts": 8, "width": 64, "expert_width": 96},
}


@pytest.fixture
def subject(architecture: Architecture) -> Subject:
    """As much of one as these questions ask for."""

    def register(table: OpTable) -> None:
        linear.register(table, architecture, source="acme")

    platform = SimpleNamespace(device="cpu", ops=register)
    return cast(Subject, SimpleNamespace(platform=platform))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("linear", "bfloat16"),
        ("linear", "float16"),
        ("tied_embedding", "bfloat16"),
        ("mixture_of_experts", "bfloat16"),
        ("mixture_of_experts", "float32"),
    ],
)
def test_the_kit_finds_them_right(subject: Subject, name: str, dtype: str) -> None:
    assert questions.operation_is_right(name, dtype)(subject) < questions.TOLERANCES[dtype]


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_the_kit_finds_rounded_ones_near(subject: Subject, quantization: str) -> None:
    error = quantized.linear_is_near(quantization, "bfloat16")(subject)
    assert error < quantized.TOLERANCES[quantization]


def test_fp8_weights_and_activations_are_off_by_what_three_bits_cost(subject: Subject) -> None:
    assert 0.02 < quantized.linear_is_near("fp8", "bfloat16")(subject) < 0.05


@pytest.mark.parametrize("name", NAMES)
def test_each_rounding_is_chosen_for_those_who_ask_for_it(subject: Subject, name: str) -> None:
    table = OpTable()
    ops.fill(table)
    subject.platform.ops(table)
    for quantization in (None, *sorted(linear.QUANTIZATION)):
        facts = {**FACTS[name], "quantization": quantization}
        table.choose(name, dtype="bfloat16", device="cpu", **facts)
    assert table.chosen == {(name, "acme"): 1 + len(linear.QUANTIZATION)}


def test_float32_linear_layers_are_left_to_the_reference(subject: Subject) -> None:
    table = OpTable()
    ops.fill(table)
    subject.platform.ops(table)
    table.choose("linear", dtype="float32", device="cpu", quantization=None, **FACTS["linear"])
    assert table.chosen == {("linear", "reference"): 1}
    (answer,) = table.answers
    assert ("acme", "its kernels are for bfloat16 and float16, not float32") in answer.refused
