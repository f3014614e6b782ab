"""Which instruction set's kernels run, on processors that are not here."""

import ctypes

import pytest


class Processor(ctypes.Structure):
    """As `dispatch.cpp` has it."""

    _fields_ = [
        (name, ctypes.c_bool)
        for name in ("intel", "avx2", "avx512vnni", "avx512bf16", "amx", "neon_dot", "neon_bf16")
    ]


NOTHING = Processor()
AVX2 = Processor(avx2=True)
CASCADE_LAKE = Processor(intel=True, avx2=True, avx512vnni=True)
COOPER_LAKE = Processor(intel=True, avx2=True, avx512vnni=True, avx512bf16=True)
SAPPHIRE_RAPIDS = Processor(intel=True, avx2=True, avx512vnni=True, avx512bf16=True, amx=True)
GENOA = Processor(avx2=True, avx512vnni=True, avx512bf16=True)
AMD_WITH_TILES = Processor(avx2=True, avx512vnni=True, avx512bf16=True, amx=True)


def choice(lib: ctypes.CDLL, processor: Processor, wanted: str | None = None) -> list[str | None]:
    """Whose kernels run, and whose attention."""
    name = None if wanted is None else wanted.encode()
    found = [lib.ek_isa_on(ctypes.byref(processor), name, attention) for attention in (0, 1)]
    return [isa and isa.decode() for isa in found]


@pytest.fixture(autouse=True)
def all_are_built(lib: ctypes.CDLL) -> None:
    names = ["amx", "avx512bf16", "avx512vnni", "avx2", "amx_emulated", "avx512bf16_emulated"]
    if any(choice(lib, SAPPHIRE_RAPIDS, name) == [None, None] for name in names):
        pytest.skip("the library has not all instruction sets of x86")


@pytest.mark.parametrize(
    ("processor", "chosen"),
    [
        (NOTHING, "generic"),
        (AVX2, "avx2"),
        (CASCADE_LAKE, "avx512vnni"),
        (GENOA, "avx512bf16"),
        (AMD_WITH_TILES, "amx"),
    ],
)
def test_the_newest_instructions_are_chosen(
    lib: ctypes.CDLL, processor: Processor, chosen: str
) -> None:
    assert choice(lib, processor) == [chosen, chosen]


def test_intel_gets_floats_rather_than_pairs_of_bfloat16(lib: ctypes.CDLL) -> None:
    assert choice(lib, COOPER_LAKE) == ["avx512vnni", "avx512vnni"]


def test_intel_gets_tiles_for_products_and_floats_for_attention(lib: ctypes.CDLL) -> None:
    assert choice(lib, SAPPHIRE_RAPIDS) == ["amx", "avx512vnni"]


@pytest.mark.parametrize("isa", ["avx512bf16", "avx2", "amx_emulated", "avx512bf16_emulated"])
@pytest.mark.parametrize("processor", [COOPER_LAKE, SAPPHIRE_RAPIDS, GENOA])
def test_a_name_decides(lib: ctypes.CDLL, processor: Processor, isa: str) -> None:
    assert choice(lib, processor, isa) == [isa, isa]


def test_tiles_asked_for_by_name_are_those_chosen_without(lib: ctypes.CDLL) -> None:
    assert choice(lib, SAPPHIRE_RAPIDS, "amx") == choice(lib, SAPPHIRE_RAPIDS)


@pytest.mark.parametrize("name", ["avx512bf16", "amx", "amx_emulated", "neon_dot", "z80", ""])
def test_what_is_not_there_is_not_chosen(lib: ctypes.CDLL, name: str) -> None:
    assert choice(lib, AVX2, name) == [None, None]
