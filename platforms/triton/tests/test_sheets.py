"""Data sheets of chips, as both platforms have them."""

import pytest

from engine_triton.sheets import Sheets


@pytest.mark.parametrize(
    ("package", "model", "name"),
    [
        ("engine_cuda", "NVIDIA H200", "h200"),
        ("engine_cuda", "NVIDIA H100 80GB HBM3", "h100"),
        ("engine_cuda", "NVIDIA A100-SXM4-80GB", "a100"),
        ("engine_cuda", "NVIDIA L4", "l4"),
        ("engine_cuda", "NVIDIA L40S", None),
        ("engine_cuda", "NVIDIA GPU", None),
        ("engine_rocm", "gfx942", "mi300x"),
        ("engine_rocm", "gfx1100", "rx7900xtx"),
        ("engine_rocm", "gfx1201", None),
    ],
)
def test_a_chip_is_known_by_whole_words_of_its_name(package, model, name):
    assert Sheets(package).name_of(model) == name


@pytest.mark.parametrize("package", ["engine_cuda", "engine_rocm"])
def test_every_sheet_is_complete_and_says_what_of_it_is_assumed(package):
    sheets = Sheets(package)
    assert sheets.names
    for name in sheets.names:
        found = sheets.profile(name)
        assert found.memory_bytes > 1e9
        assert found.bandwidth > 1e11
        assert found.flops["bfloat16"] > 1e13
        assert found.watts > 0
        assert "sheet" in found.source or "specifications" in found.source
        assert "assumed: reached_bandwidth" in found.source
        assert found.validation is None  # nobody has compared predictions with the chip


def test_numbers_have_the_profile_s_units():
    h200 = Sheets("engine_cuda").profile("h200")
    assert h200.memory_bytes == 141_000_000_000
    assert h200.bandwidth == 4.8e12
    assert h200.flops["float8"] == pytest.approx(1978.9e12)
    assert h200.link_bandwidth == 450e9


@pytest.mark.parametrize("package", ["engine_cuda", "engine_rocm"])
def test_settings_are_the_engine_s(package):
    from engine.config import resolve

    sheets = Sheets(package)
    for model in ("NVIDIA H100", "gfx942", "unknown"):
        resolve({}, sheets.defaults(model))
    assert sheets.defaults("unknown") == {}
