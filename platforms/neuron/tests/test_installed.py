"""What is told about a machine, from its files alone."""

import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace

import pytest

import engine_neuron
from engine_neuron import installed
from engine_neuron.installed import INSTALL, probe

GOOD = {"torch-neuronx": "2.14.3.0+abc", "torch": "2.14.0"}
WRONG = "WRONG PACKAGE. Please install the package from Neuron Repository"


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Makes one of these packages, of this Python, with so many cores on each chip."""

    def make(packages, chips=(), python=(3, 12, 1), metadata="Name: real\n"):
        def distribution(name):
            if name not in packages:
                raise PackageNotFoundError(name)
            return SimpleNamespace(version=packages[name], read_text=lambda file: metadata)

        monkeypatch.setattr(installed, "distribution", distribution)
        monkeypatch.setattr(sys, "version_info", python)
        (tmp_path / "dev").mkdir()
        for number, cores in enumerate(chips):
            (tmp_path / "dev" / f"neuron{number}").touch()
            folder = tmp_path / "sys/devices/virtual/neuron_device" / f"neuron{number}"
            for core in range(cores):
                (folder / f"neuron_core{core}").mkdir(parents=True)
        return tmp_path

    return make


def test_without_the_package_the_command_that_installs_it_is_told(machine):
    found = probe(machine({"torch": "2.14.0"}))
    assert not found
    assert found.detail == f"torch-neuronx is not installed; {INSTALL}"
    assert "--extra-index-url https://pip.repos.neuron.amazonaws.com" in INSTALL
    assert ">=2.13" in INSTALL, "or pip might take PyPI's 1.0"


@pytest.mark.parametrize("python", [(3, 11, 9), (3, 12, 1)])
def test_a_placeholder_of_pypi_is_recognised_whatever_the_python(machine, python):
    packages = {"torch-neuronx": "1.0", "nki": "1.0", "torch": "2.13.0"}
    detail = probe(machine(packages, (8,), python, metadata=WRONG)).detail
    assert detail.startswith("torch-neuronx, nki came from PyPI, where it is a placeholder; pip un")
    assert detail.endswith(INSTALL)


@pytest.mark.parametrize(
    ("packages", "python", "said"),
    [
        (GOOD, (3, 11, 9), "TorchNeuron needs Python 3.12 or newer, and this is"),
        ({"torch-neuronx": "2.14.3.0"}, (3, 12, 1), "torch is not installed, and torch-neuronx"),
        ({**GOOD, "torch-neuronx": "2.9.0.1"}, (3, 12, 1), "older than its native device"),
        ({**GOOD, "torch": "2.13.1"}, (3, 12, 1), "2.14, and torch 2.13.1 is installed; pip"),
    ],
)
def test_what_does_not_go_together_is_told(machine, packages, python, said):
    found = probe(machine(packages, (8,), python))
    assert not found
    assert said in found.detail


def test_with_the_package_but_no_device_exactly_that_is_told(machine):
    found = probe(machine(GOOD))
    assert not found
    assert found.detail == (
        "torch-neuronx 2.14.3.0+abc is installed, but the machine has no Neuron device"
    )


@pytest.mark.parametrize(("config", "cores"), [(None, 8), ("1", 16), ("2", 8)])
def test_cores_are_counted_as_the_runtime_offers_them(machine, monkeypatch, config, cores):
    monkeypatch.delenv("NEURON_LOGICAL_NC_CONFIG", raising=False)
    if config:
        monkeypatch.setenv("NEURON_LOGICAL_NC_CONFIG", config)
    found = probe(machine(GOOD, (8, 8)))
    assert found.devices == cores
    assert f"2 chips, {cores} logical cores" in found.detail


@pytest.mark.parametrize("config", ["0", "two"])
def test_cores_put_together_in_a_way_that_there_is_not_are_told(machine, monkeypatch, config):
    monkeypatch.setenv("NEURON_LOGICAL_NC_CONFIG", config)
    found = probe(machine(GOOD, (8,)))
    assert not found
    assert f"NEURON_LOGICAL_NC_CONFIG={config} is neither 1 nor 2 cores" in found.detail


def test_a_chip_whose_cores_nobody_tells_is_one(machine):
    assert probe(machine(GOOD, (0,))).devices == 1


def test_asking_imports_no_torch_and_nothing_of_the_vendor():
    code = (
        "import sys, engine_neuron\n"
        "[spec] = engine_neuron.engine_platforms()\n"
        "assert not spec.probe() and spec.probe().detail\n"
        "assert not {'torch', 'torch_neuronx', 'nki'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_without_the_package_a_platform_is_refused_with_the_same_words(monkeypatch):
    from engine.config import EngineConfig
    from engine.errors import UnsupportedError

    monkeypatch.setattr(installed, "missing", lambda: "not here; pip install it")
    with pytest.raises(UnsupportedError, match="not here; pip install it"):
        engine_neuron.create(EngineConfig(device="neuron"), 0)
