"""The data sheets: complete, plausible, and honest about what nobody measured."""

import pytest

from engine_sim.profiles import names, profile


def test_a_name_without_a_sheet_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="no data sheet of 'abacus'; there are a100, b200"):
        profile("abacus")


@pytest.mark.parametrize("name", names())
def test_a_sheet_has_its_source_and_says_what_is_assumed(name: str) -> None:
    found = profile(name)
    assert found.name == name
    assert len(found.source.partition("assumed:")[0]) > 20
    assert "assumed:" in found.source
    assert found.validation is None, "nobody has validated predictions on these devices"


@pytest.mark.parametrize("name", names())
def test_rates_are_in_the_range_of_accelerators(name: str) -> None:
    found = profile(name)
    assert 8e9 <= found.memory_bytes <= 1e12
    assert 1e11 <= found.bandwidth <= 2e13
    assert 5e13 <= found.flops["bfloat16"] <= 5e15
    assert 0.5 <= found.reached_bandwidth <= 1
    assert 0.5 <= found.reached_flops <= 1
    assert 1e10 <= found.link_bandwidth <= 2e12
    # A narrower number is never slower, and a wider one never faster.
    assert found.flops.get("float8", 1e18) >= found.flops["bfloat16"]
    assert found.flops.get("float32", 0) <= found.flops["bfloat16"]


def test_measured_shares_replace_assumed_ones() -> None:
    found = profile("h200")
    assert found.bandwidth * found.reached_bandwidth == pytest.approx(4.3e12, rel=0.01)
    assert found.flops["bfloat16"] * found.reached_flops == pytest.approx(790e12, rel=0.01)
    assert "reached" not in found.source.partition("assumed:")[2]
