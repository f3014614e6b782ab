"""Weights of 8 and 4 bits: what packing does to them, and products against float64.

The look-up says what weights were rounded to; so it is checked first, against what the format
promises, and products are then compared with exact sums of exactly those weights.
"""

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
#: Half a unit in the last place, and roundings of sums in float32 before it.
TOLERANCES = {torch.float32: 1e-6, torch.bfloat16: 4.1e-3, torch.float16: 5.2e-4}
GROUP = {8: 64, 4: 32}
GUARD = 64  # elements

bits_of = pytest.mark.parametrize("bits", [8, 4])
dtypes = pytest.mark.parametrize("dtype", list(DTYPES), ids=str)


@pytest.fixture(autouse=True, params=[1, 2, 3], ids=lambda count: f"{count} threads")
def threads(request: pytest.FixtureRequest, lib: ctypes.CDLL) -> Iterator[None]:
    lib.ek_set_threads(request.param)
    yield
    lib.ek_set_threads(0)


class Packed:
    """A matrix [N, K] as the library keeps it, between guard zones."""

    def __init__(self, lib: ctypes.CDLL, weight: Tensor, bits: int) -> None:
        self.lib, self.bits = lib, bits
        self.n, self.k = weight.shape
        size = lib.ek_quantized_bytes(self.k, self.n, bits)
        self._all = torch.full((size + 2 * GUARD,), 0xA5, dtype=torch.uint8)
        self.bytes = self._all[GUARD:-GUARD]
        where = (weight.data_ptr(), weight.stride(0), self.bytes.data_ptr())
        lib.ek_quantized_pack(*where, self.k, self.n, bits, DTYPES[weight.dtype])
        assert (self._all[:GUARD] == 0xA5).all(), "written before the panels"
        assert (self._all[-GUARD:] == 0xA5).all(), "written behind the panels"

    def rows(self, ids: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        y = Output(dtype, len(ids), self.k)
        kind = (self.bits, DTYPES[dtype])
        where = (ids.data_ptr(), self.bytes.data_ptr(), y.tensor.data_ptr())
        assert self.lib.ek_quantized_look_up(*where, self.k, *kind, len(ids)) == 0
        return y.checked()

    def all_rows(self) -> Tensor:
        return self.rows(torch.arange(self.n)).double()

    def product(
        self, x: Tensor, bias: Tensor | None = None, dtype: torch.dtype | None = None
    ) -> Tensor:
        y = Output(dtype or x.dtype, len(x), self.n)
        failed = self.lib.ek_quantized_linear(
            x.data_ptr(),
            x.stride(0),
            self.bytes.data_ptr(),
            None if bias is None else bias.data_ptr(),
            y.tensor.data_ptr(),
            self.n,
            self.k,
            self.n,
            self.bits,
            DTYPES[x.dtype],
            DTYPES[y.tensor.dtype],
            len(x),
        )
        assert failed == 0
        return y.checked()


class Output:
    """A tensor of NaN with more NaN before and behind it."""

    def __init__(self, dtype: torch.dtype, rows: int, width: int) -> None:
        self._all = torch.full((rows * width + 2 * GUARD,), torch.nan, dtype=dtype)
        self.tensor = self._all[GUARD:-GUARD].view(rows, width)

    def checked(self) -> Tensor:
        assert self._all[:GUARD].isnan().all(), "written before the result"
        assert self._all[-GUARD:].isnan().all(), "written behind the result"
        return self.tensor


def sliced(dtype: torch.dtype, rows: int, width: int) -> Tensor:
    """Random numbers; each row is followed by NaN."""
    generator = torch.Generator().manual_seed(rows * 1000 + width)
    wide = torch.full((rows, width + 5), torch.nan, dtype=dtype)
    wide[:, 2 : 2 + width] = torch.randn(rows, width, generator=generator).to(dtype)
    return wide[:, 2 : 2 + width]


def in_groups(x: Tensor, size: int) -> Tensor:
    return functional.pad(x.double(), (0, -x.shape[1] % size)).view(len(x), -1, size)


def rounded_inputs(x: Tensor, bits: int) -> Tensor:
    """As the kernels round them, in float32; the result is exact in float64."""
    groups = in_groups(x, GROUP[bits]).float()
    scale = groups.abs().amax(-1, keepdim=True) / 127
    inverse = torch.where(scale > 0, 1 / scale, 0)
    levels = (groups * inverse).round().clamp(-127, 127)
    return (levels.double() * scale.double()).flatten(1)[:, : x.shape[1]]


def close(found: Tensor, right: Tensor, magnitude: Tensor) -> None:
    """`magnitude`: the sum of the absolute products, which float32 sums err in proportion to."""
    assert not found.isnan().any()
    error = (found.double() - right).abs()
    allowed = right.abs() * TOLERANCES[found.dtype] + magnitude * 1e-6 + 1e-7
    assert (error <= allowed).all(), f"off by {(error / allowed).max():.2f} of what is allowed"


sizes = pytest.mark.parametrize(
    ("n", "k"), [(1, 1), (31, 31), (33, 63), (96, 64), (33, 65), (31, 576), (768, 100)]
)


@dtypes
@sizes
def test_eight_bits_err_by_half_a_step_at_most(
    lib: ctypes.CDLL, dtype: torch.dtype, n: int, k: int
) -> None:
    groups = in_groups(sliced(dtype, n, k), 64)
    found = in_groups(Packed(lib, sliced(dtype, n, k), 8).all_rows(), 64)
    step = groups.abs().amax(-1, keepdim=True) / 127 * (1 + 2**-7)  # the scale is a bfloat16
    assert ((found - groups).abs() <= step / 2 * (1 + 1e-6)).all()


@dtypes
@sizes
def test_four_bits_err_less_than_the_plain_scale_would(
    lib: ctypes.CDLL, dtype: torch.dtype, n: int, k: int
) -> None:
    """That scale makes the element of largest magnitude -8."""
    groups = in_groups(sliced(dtype, n, k), 32)
    found = in_groups(Packed(lib, sliced(dtype, n, k), 4).all_rows(), 32)
    largest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    unit = torch.where(largest != 0, largest / -8, 1)
    plain = (groups / unit).round().clamp(-8, 7) * unit
    ours, theirs = ((one - groups).square().sum(-1) for one in (found, plain))
    rounding = groups.square().sum(-1) * 2.0**-16  # of the scale to bfloat16
    assert (ours <= theirs + rounding).all()
    if k >= 31:
        assert ours.sum() < 0.93 * theirs.sum()


@bits_of
def test_a_group_of_zeros_stays_zero_and_disturbs_nothing(lib: ctypes.CDLL, bits: int) -> None:
    weight = sliced(torch.float32, 33, 200).contiguous()
    weight[:, 64:128] = 0
    weight[5] = 0
    found = Packed(lib, weight, bits).all_rows()
    assert (found[:, 64:128] == 0).all()
    assert (found[5] == 0).all()
    assert (found[4, :64] != 0).any()


@bits_of
@dtypes
def test_looked_up_rows_are_in_the_order_of_the_ids(
    lib: ctypes.CDLL, dtype: torch.dtype, bits: int
) -> None:
    packed = Packed(lib, sliced(dtype, 70, 100), bits)
    ids = torch.tensor([69, 0, 33, 33, 31, 32])
    assert torch.equal(packed.rows(ids, dtype), packed.all_rows()[ids].to(dtype))


@bits_of
@dtypes
@pytest.mark.parametrize("k", [1, 31, 63, 64, 65, 576, 1500])
@pytest.mark.parametrize("tokens", [1, 2, 6, 7, 12, 13, 31, 100])
def test_products_are_exact_but_for_the_rounding_of_inputs(
    lib: ctypes.CDLL, dtype: torch.dtype, bits: int, k: int, tokens: int
) -> None:
    x = sliced(dtype, tokens, k)
    x_rounded = rounded_inputs(x, bits)
    for n in (1, 31, 33, 96):
        packed = Packed(lib, sliced(dtype, n, k), bits)
        weight, bias = packed.all_rows(), sliced(torch.float32, 1, n)[0]
        right = x_rounded @ weight.T
        magnitude = x_rounded.abs() @ weight.abs().T
        close(packed.product(x), right, magnitude)
        close(packed.product(x, bias, torch.float32), right + bias.double(), magnitude)


@bits_of
def test_many_rows_and_deep_sums_go_through_in_blocks(lib: ctypes.CDLL, bits: int) -> None:
    """More rows than stay in the second-level cache, and more groups than in the first."""
    x = sliced(torch.bfloat16, 403, 5000)
    packed = Packed(lib, sliced(torch.bfloat16, 100, 5000), bits)
    x_rounded, weight = rounded_inputs(x, bits), packed.all_rows()
    magnitude = x_rounded.abs() @ weight.abs().T
    close(packed.product(x, dtype=torch.float32), x_rounded @ weight.T, magnitude)


@pytest.mark.parametrize(("bits", "error"), [(8, 0.012), (4, 0.1)])
def test_products_come_near_those_of_the_weights_as_they_were(
    lib: ctypes.CDLL, bits: int, error: float
) -> None:
    x, weight = sliced(torch.float32, 31, 768), sliced(torch.float32, 576, 768)
    right = x.double() @ weight.double().T
    found = Packed(lib, weight, bits).product(x).double()
    assert (found - right).norm() < error * right.norm()


@bits_of
@pytest.mark.parametrize("strange", [torch.nan, torch.inf])
def test_what_is_no_number_shows_in_its_row_and_in_no_other(
    lib: ctypes.CDLL, bits: int, strange: float
) -> None:
    x, weight = sliced(torch.float32, 9, 100).contiguous(), sliced(torch.float32, 40, 100)
    x[3, 70] = strange
    found = Packed(lib, weight, bits).product(x)
    assert not found[3].isfinite().any()
    assert found[torch.arange(9) != 3].isfinite().all()
    weight = weight.contiguous()
    weight[35, 99] = strange
    found = Packed(lib, weight, bits).product(sliced(torch.float32, 9, 100))
    assert not found[:, 35].isfinite().any()
    assert found[:, :35].isfinite().all()


@bits_of
def test_large_and_tiny_weights_keep_their_size(lib: ctypes.CDLL, bits: int) -> None:
    for scale in (1e-30, 1e-6, 1e30):
        weight = sliced(torch.float32, 33, 64) * scale
        found = Packed(lib, weight, bits).all_rows()
        assert (found - weight.double()).norm() < 0.1 * weight.double().norm()


@bits_of
def test_a_recorded_product_serves_fewer_tokens_too(lib: ctypes.CDLL, bits: int) -> None:
    x, packed = sliced(torch.float32, 31, 130), Packed(lib, sliced(torch.float32, 65, 130), bits)
    right = packed.product(x)
    y = Output(torch.float32, 31, 65)
    tape = lib.ek_tape_new(31)
    lib.ek_tape_begin(tape)
    where = (x.data_ptr(), x.stride(0), packed.bytes.data_ptr(), None, y.tensor.data_ptr(), 65)
    assert lib.ek_quantized_linear(*where, 130, 65, bits, 0, 0, 31) == 0
    lib.ek_tape_end()
    assert y.checked().isnan().all(), "computed while it was recorded"
    for tokens in (1, 7, 31):
        y.tensor.fill_(torch.nan)
        lib.ek_tape_run(tape, tokens)
        assert torch.allclose(y.checked()[:tokens], right[:tokens], rtol=1e-5, atol=1e-5)
        assert y.tensor[tokens:].isnan().all()
    lib.ek_tape_free(tape)


#: Prints a digest of packed weights, and of products whose scales are powers of two: then not even
#: the scaling rounds, and every instruction set must give the same bits.
_DIGEST = """
import hashlib, torch, engine_cpu_kernels
lib = engine_cpu_kernels.library()
digest = hashlib.sha256()
torch.manual_seed(1)
for bits, size in ((8, 64), (4, 32)):
    x = torch.randint(-127, 128, (13, 320)).float()
    x[:, ::size] = 127
    w = torch.randint(-127, 128, (75, 320)).float() if bits == 8 else torch.randint(
        -8, 8, (75, 320)).float()
    w[:, 1::size] = 127 if bits == 8 else -8
    packed = torch.empty(lib.ek_quantized_bytes(320, 75, bits), dtype=torch.uint8)
    lib.ek_quantized_pack(w.data_ptr(), 320, packed.data_ptr(), 320, 75, bits, 0)
    y = torch.empty(13, 75)
    lib.ek_quantized_linear(x.data_ptr(), 320, packed.data_ptr(), None, y.data_ptr(), 75, 320, 75,
        bits, 0, 0, 13)
    if bits == 8:
        assert torch.equal(y, x @ w.T)
    digest.update(packed.numpy().tobytes() + y.numpy().tobytes())
print(digest.hexdigest())
"""


def test_every_instruction_set_gives_the_same_numbers(lib: ctypes.CDLL) -> None:
    import engine_cpu_kernels

    digests = {}
    for isa in engine_cpu_kernels.isas():
        environment = {**os.environ, "ENGINE_CPU_ISA": isa}
        command = [sys.executable, "-c", _DIGEST]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        digests[isa] = done.stdout.strip()
    assert len(set(digests.values())) == 1, digests
