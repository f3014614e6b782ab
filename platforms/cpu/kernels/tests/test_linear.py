"""Linear layers over packed weights, against products in float64."""

import ctypes
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

NUMBERS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
#: Of the result, where each product is about 1 and there are K of them; roundings of the dtype.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}
GUARD = 64


@pytest.fixture(params=[1, 2, 3], ids=lambda count: f"threads{count}", autouse=True)
def threads(lib: ctypes.CDLL, request: pytest.FixtureRequest) -> Iterator[None]:
    lib.ek_set_threads(request.param)
    yield
    lib.ek_set_threads(0)


def pack(lib: ctypes.CDLL, weight: Tensor) -> Tensor:
    outputs, inputs = weight.shape
    number = NUMBERS[weight.dtype]
    size = lib.ek_linear_bytes(inputs, outputs, number)
    room = torch.full((size + GUARD,), 0x7F, dtype=torch.uint8)
    lib.ek_linear_pack(
        weight.data_ptr(), weight.stride(0), room.data_ptr(), inputs, outputs, number
    )
    assert (room[size:] == 0x7F).all()
    return room


def apply(lib: ctypes.CDLL, x: Tensor, panels: Tensor, outputs: int, bias: Tensor | None, to=None):
    """The result, and what lies behind it."""
    dtype = to or x.dtype
    y = torch.full((len(x) * outputs + GUARD,), torch.nan, dtype=dtype)
    code = lib.ek_linear(
        x.data_ptr(),
        x.stride(0),
        panels.data_ptr(),
        None if bias is None else bias.data_ptr(),
        y.data_ptr(),
        outputs,
        x.shape[1],
        outputs,
        NUMBERS[x.dtype],
        NUMBERS[dtype],
        len(x),
    )
    assert code == 0
    assert y[len(x) * outputs :].isnan().all()
    return y[: len(x) * outputs].view(len(x), outputs)


def error(found: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> float:
    right = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    return float((found.double() - right).abs().max() / weight.shape[1] ** 0.5)


@pytest.mark.parametrize("dtype", NUMBERS, ids=str)
@pytest.mark.parametrize(
    ("outputs", "inputs"), [(1, 1), (31, 17), (33, 64), (96, 255), (64, 256), (45, 513)]
)
@pytest.mark.parametrize("tokens", [1, 2, 5, 12, 13, 31, 100, 257])
def test_products_are_right(lib, dtype, outputs, inputs, tokens) -> None:
    random = torch.Generator().manual_seed(tokens)
    weight = torch.randn(outputs, inputs, generator=random).to(dtype)
    wide = torch.randn(tokens, inputs + 3, generator=random).to(dtype)
    x = wide[:, 1 : inputs + 1]  # rows that lie apart, at addresses aligned to an element
    bias = torch.randn(outputs, generator=random)
    panels = pack(lib, weight)
    assert error(apply(lib, x, panels, outputs, bias), x, weight, bias) < TOLERANCES[dtype]
    wide_result = apply(lib, x, panels, outputs, None, to=torch.float32)
    exact = 1e-5 if dtype != torch.bfloat16 else 1e-2  # bfloat16 products may be of rounded x
    assert error(wide_result, x, weight, None) < exact


@pytest.mark.parametrize("dtype", NUMBERS, ids=str)
def test_a_row_gets_the_same_bits_in_any_company(lib, dtype) -> None:
    """Whether few rows share a reading, many are cut into blocks, or threads share out the end."""
    weight, x = torch.randn(27 * 32 - 5, 1030).to(dtype), torch.randn(600, 1030).to(dtype)
    panels = pack(lib, weight)
    together = apply(lib, x, panels, len(weight), None, to=torch.float32)
    for rows in (slice(0, 1), slice(3, 9), slice(10, 22), slice(100, 140), slice(599, 600)):
        alone = apply(lib, x[rows], panels, len(weight), None, to=torch.float32)
        assert torch.equal(alone, together[rows])


def test_more_threads_than_cores_leave_nothing_out(lib) -> None:
    """Threads that have to wait for a core find their part taken by others, a piece at a time; some
    have no part at all."""
    weights = [torch.randn(32 * panels - 3, 65) for panels in (3, 1, 40, 7)]
    packed = [pack(lib, weight) for weight in weights]
    x = torch.randn(30, 65)
    lib.ek_set_threads(1)
    expected = [
        apply(lib, x, panels, len(weight), None)
        for weight, panels in zip(weights, packed, strict=True)
    ]
    lib.ek_set_threads(9)
    for tokens in (1, 2, 5, 30) * 20:
        for weight, panels, right in zip(weights, packed, expected, strict=True):
            found = apply(lib, x[:tokens], panels, len(weight), None)
            assert torch.equal(found, right[:tokens])


def test_a_strided_weight_is_packed(lib) -> None:
    whole = torch.randn(40, 50)
    part = whole[:, 7:31]
    x = torch.randn(3, 24)
    assert error(apply(lib, x, pack(lib, part), 40, None), x, part, None) < 1e-5


@pytest.mark.parametrize("dtype", NUMBERS, ids=str)
def test_rows_can_be_looked_up_in_packed_weights(lib, dtype) -> None:
    weight = torch.randn(70, 33).to(dtype)
    ids = torch.tensor([0, 69, 31, 32, 33, 5])
    found = torch.full((6, 33), torch.nan, dtype=dtype)
    assert (
        lib.ek_linear_look_up(
            ids.data_ptr(), pack(lib, weight).data_ptr(), found.data_ptr(), 33, NUMBERS[dtype], 6
        )
        == 0
    )
    assert torch.equal(found, weight[ids])


def test_a_tape_runs_again_with_fewer_tokens_and_other_inputs(lib) -> None:
    """Two layers in a row, noted with 20 tokens and run with any number up to that."""
    first, second = torch.randn(700, 65), torch.randn(33, 700)
    panels = pack(lib, first), pack(lib, second)
    x, inner, y = torch.zeros(20, 65), torch.zeros(20, 700), torch.zeros(20, 33)
    tape = lib.ek_tape_new(20)

    def call(source: Tensor, packed: Tensor, result: Tensor, tokens: int) -> int:
        inputs, outputs = source.shape[1], result.shape[1]
        return lib.ek_linear(
            *(source.data_ptr(), inputs, packed.data_ptr(), None, result.data_ptr(), outputs),
            *(inputs, outputs, 0, 0, tokens),
        )

    lib.ek_tape_begin(tape)
    try:
        assert call(x, panels[0], inner, 20) == 0
        assert call(inner, panels[1], y, 20) == 0
        assert call(x, panels[0], inner, 19) == -1  # of another number of tokens: refused
    finally:
        lib.ek_tape_end()
    assert lib.ek_tape_length(tape) == 2
    assert not y.any(), "nothing is computed while a tape is recorded"
    for tokens in (1, 7, 13, 20):
        x.normal_()
        y.fill_(torch.nan)
        lib.ek_tape_run(tape, tokens)
        right = x[:tokens].double() @ first.double().T @ second.double().T
        assert (y[:tokens].double() - right).abs().max() < 1e-2
        assert y[tokens:].isnan().all()
    lib.ek_tape_free(tape)
