"""Whether there is a device, and what else is said about it: from files alone."""

import sys

import pytest

import engine_gaudi
from engine_gaudi import bridge


@pytest.fixture
def nodes(tmp_path, monkeypatch):
    """A folder of device nodes, with one of another vendor's among them."""
    folder = tmp_path / "accel"
    folder.mkdir()
    (folder / "accel0").touch()
    monkeypatch.setattr(bridge, "NODES", folder)
    monkeypatch.setattr(bridge, "DRIVER_VERSION", tmp_path / "driver")
    return folder


def add_devices(nodes, count):
    for number in range(count):
        (nodes / f"accel_controlD{number}").touch()


def test_without_the_bridge_one_sentence_says_so_and_how_to_get_it_from_intel(nodes):
    add_devices(nodes, 8)
    found = engine_gaudi.probe()
    assert not found
    assert "(habana_frameworks) is not installed; wget https://vault.habana.ai/" in found.detail
    assert "habanalabs-installer.sh install --type pytorch" in found.detail
    assert "pip install" not in found.detail


def test_with_the_bridge_and_no_device_exactly_that_is_said(vendor, nodes):
    found = engine_gaudi.probe()
    assert not found
    assert "bridge 1.24.0.17 is installed, but this machine shows no Gaudi device" in found.detail


def test_each_device_node_is_a_device(vendor, nodes):
    add_devices(nodes, 8)
    found = engine_gaudi.probe()
    assert found.devices == 8
    assert found.detail == "8 x Gaudi, bridge 1.24.0.17"


def test_modules_that_the_container_does_not_show_do_not_count(vendor, nodes, monkeypatch):
    add_devices(nodes, 8)
    monkeypatch.setenv("HABANA_VISIBLE_MODULES", "4, 5,6")
    assert engine_gaudi.probe().devices == 3
    monkeypatch.setenv("HABANA_VISIBLE_MODULES", "all")
    assert engine_gaudi.probe().devices == 8


def test_a_bridge_for_another_torch_is_refused_before_it_is_imported(vendor, nodes):
    add_devices(nodes, 1)
    (vendor / "required_version.txt").write_text("1.2.3\n")
    found = engine_gaudi.probe()
    assert not found
    assert "built for torch 1.2.3, and torch 2." in found.detail
    assert "install --type pytorch" in found.detail


def test_a_driver_of_another_release_is_refused(vendor, nodes, tmp_path):
    add_devices(nodes, 1)
    (tmp_path / "driver").write_text("1.24.1-abcdef\n")
    assert engine_gaudi.probe().devices == 1
    (tmp_path / "driver").write_text("1.19.0-abcdef\n")
    found = engine_gaudi.probe()
    assert "of release 1.24.0.17, and the loaded driver of 1.19.0-abcdef" in found.detail


def test_probing_imports_nothing_of_the_bridge(vendor, nodes):
    engine_gaudi.probe()
    assert "habana_frameworks.torch" not in sys.modules
    bridge.load()
    assert "habana_frameworks.torch.core" in sys.modules


def test_ranks_compute_eagerly_or_compiled_never_lazily():
    assert engine_gaudi.environment(3) == {"PT_HPU_LAZY_MODE": "0"}
